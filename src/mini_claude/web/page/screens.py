"""Which conversation each open page shows now."""

from collections.abc import Callable

import gradio as gr

StillShown = Callable[[], bool]


class Screens:
    """A reply is written into a page only while the page shows what it showed when the writing began."""

    def __init__(self) -> None:
        self._shown: dict[str, object] = {}

    def turn(self, request: gr.Request) -> StillShown:
        """The page turns to something else (or anew to the same); what was written into it before ends."""
        name, now = request.session_hash or "", object()
        self._shown[name] = now
        return lambda: self._shown.get(name) is now

    def close(self, request: gr.Request) -> None:
        """The page is gone."""
        self._shown.pop(request.session_hash or "", None)
