"""The button in a text field: it sends, or stops what was sent. In words: nothing would read Gradio's icons aloud."""

from typing import Any, Final

SEND: Final[dict[str, Any]] = {"submit_btn": "Send", "stop_btn": False}
STOP: Final[dict[str, Any]] = {"submit_btn": False, "stop_btn": "Stop"}
