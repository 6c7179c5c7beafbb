"""Somebody at a terminal: what they type, what they see."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console

from mini_claude.terminal.chat import TerminalChat
from mini_claude.terminal.server import ServerClient
from mini_claude.utils.config import Settings


class Screen(io.StringIO):
    """What the user sees. `on_write` is called with it after each write."""

    def __init__(self) -> None:
        super().__init__()
        self.on_write: Callable[[str], None] | None = None

    def write(self, text: str) -> int:
        written = super().write(text)
        if self.on_write is not None:
            self.on_write(self.getvalue())
        return written


class Keyboard(Console):
    """A console whose lines, interruptions and end of input were written down before."""

    def __init__(self, screen: Screen, keys: list[str | type[BaseException]]) -> None:
        super().__init__(file=screen, width=60)
        self._keys = iter(keys)

    def input(self, *args: Any, **kwargs: Any) -> str:
        key = next(self._keys)
        if isinstance(key, str):
            return key
        raise key


def delta(text: str) -> str:
    return f"event: delta\ndata: {json.dumps({'number': 1, 'text': text})}\n\n"


def end(reason: str) -> str:
    return f"event: end\ndata: {json.dumps({'number': 9, 'finish_reason': reason})}\n\n"


class User:
    """Types lines and reads the screen."""

    def __init__(self, settings: Settings, **options: Any) -> None:
        self.screen = Screen()
        self.client = ServerClient(settings)
        self.chat = TerminalChat(self.client, Console(file=self.screen, width=60), **options)

    def types(self, line: str) -> str:
        """What appears on the screen after this line."""
        start = len(self.screen.getvalue())
        self.chat.handle(line)
        return self.screen.getvalue()[start:]

    def answered_by(self, events: str) -> None:
        """From now on the server answers with these events."""
        start = 'event: start\ndata: {"session_id": "s", "dropped_turn_ids": []}\n\n: ping\n\n'
        self.client.http.close()
        self.client.http = httpx.Client(
            base_url="http://test", transport=httpx.MockTransport(lambda _: httpx.Response(200, text=start + events))
        )

    def saves(self, path: Path) -> dict[str, Any]:
        """The conversation as /save writes it."""
        assert "saved to" in self.types(f"/save {path}").replace("\n", " ")
        session: dict[str, Any] = json.loads(path.read_text())
        return session
