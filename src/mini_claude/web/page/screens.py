"""Which conversation each open page shows now."""

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import gradio as gr

StillShown = Callable[[], bool]


class Screens:
    """A reply is written into a page only while the page shows what it showed when the writing began."""

    def __init__(self) -> None:
        self._shown: dict[str, _Shown] = {}
        self._asked: set[tuple[str, Hashable]] = set()

    @contextmanager
    def asking(self, request: gr.Request, question: Hashable) -> Iterator[bool]:
        """Whether this page does not ask just this already: Enter pressed twice is one question."""
        mark = (_name(request), question)
        is_new = mark not in self._asked
        self._asked.add(mark)
        try:
            yield is_new
        finally:
            if is_new:
                self._asked.discard(mark)

    def turn(self, request: gr.Request, chat: str | None = None) -> StillShown:
        """The page turns to something else (or anew to the same); what was written into it before ends.

        `chat`: the mark of the empty chat that a question makes a conversation of.
        """
        name, now = _name(request), _Shown(chat)
        self._shown[name] = now
        return lambda: self._shown.get(name) is now

    # Events that a page sends one after the other can begin in another order.

    def opened(self, request: gr.Request) -> StillShown | None:
        """The page opens. None where its visitor was quicker: what it shows by then stays."""
        return None if _name(request) in self._shown else self.turn(request)

    def emptied(self, request: gr.Request, chat: str | None) -> StillShown | None:
        """The page shows the empty chat of this mark. None where the first question in it was quicker."""
        shown = self._shown.get(_name(request))
        return None if shown is not None and chat is not None and shown.chat == chat else self.turn(request)

    def close(self, request: gr.Request) -> None:
        """The page is gone."""
        self._shown.pop(_name(request), None)


@dataclass(frozen=True, slots=True, eq=False)
class _Shown:
    chat: str | None


def _name(request: gr.Request) -> str:
    return request.session_hash or ""
