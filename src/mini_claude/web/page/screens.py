"""Which conversation each open page shows now."""

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager

import gradio as gr

StillShown = Callable[[], bool]


class Screens:
    """A reply is written into a page only while the page shows what it showed when the writing began."""

    def __init__(self) -> None:
        self._shown: dict[str, object] = {}
        self._asked: set[tuple[str, Hashable]] = set()

    @contextmanager
    def asking(self, request: gr.Request, question: Hashable) -> Iterator[bool]:
        """Whether this page does not ask just this already: Enter pressed twice is one question."""
        mark = (request.session_hash or "", question)
        is_new = mark not in self._asked
        self._asked.add(mark)
        try:
            yield is_new
        finally:
            if is_new:
                self._asked.discard(mark)

    def turn(self, request: gr.Request) -> StillShown:
        """The page turns to something else (or anew to the same); what was written into it before ends."""
        name, now = request.session_hash or "", object()
        self._shown[name] = now
        return lambda: self._shown.get(name) is now

    def close(self, request: gr.Request) -> None:
        """The page is gone."""
        self._shown.pop(request.session_hash or "", None)
