"""`mini-claude chat`: a conversation in the terminal. Ctrl-C stops the reply, Ctrl-D leaves."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
from rich.console import Console

from mini_claude.errors import MiniClaudeError
from mini_claude.terminal.server import ServerClient

HELP = """\
/model NAME    answer with another model        /models        list them
/system TEXT   set the system prompt            /new           start a new conversation
/save FILE     write the conversation as JSON   /quit          leave (also Ctrl-D)
Ctrl-C         stop the reply"""


class TerminalChat:
    """Reads lines, streams replies. The conversation itself is a session on the server."""

    def __init__(
        self,
        client: ServerClient,
        console: Console,
        *,
        model: str | None = None,
        system: str | None = None,
        temperature: float = 0.2,
    ) -> None:
        self._client = client
        self._console = console
        self._model = model
        self._system = system
        self._temperature = temperature
        self._session_id: str | None = None

    def run(self) -> None:
        """Until Ctrl-D or /quit."""
        self._console.print("Mini-Claude. /help shows the commands, Ctrl-D leaves.", style="dim")
        while True:
            try:
                line = self._console.input("[bold]>>> [/bold]").strip()
            except EOFError:
                self._console.print()
                return
            except KeyboardInterrupt:
                self._console.print("\n(Ctrl-D leaves)", style="dim")
                continue
            if line in {"/quit", "/exit"}:
                return
            if line:
                self.handle(line)

    def handle(self, line: str) -> None:
        """One line: a command or a message. Errors are shown, never raised."""
        try:
            if line.startswith("/"):
                command, _, argument = line.partition(" ")
                self._command(command, argument.strip())
            else:
                self._say(line)
        except (MiniClaudeError, OSError, ValueError, RuntimeError) as error:  # the last two: odd bytes, odd paths
            self._console.print(f"{error}", style="red", markup=False)

    def _command(self, command: str, argument: str) -> None:
        match command:
            case "/help":
                self._console.print(HELP, markup=False)
            case "/models":
                for info in self._client.call("GET", "/api/v1/models")["models"]:
                    self._console.print(f"{info['name']:<24} {info['state']}", markup=False)
            case "/model" if argument:
                self._client.call("GET", f"/api/v1/models/{quote(argument, safe='')}")  # names one that does not exist
                self._model = argument
            case "/system" if argument:
                self._system = argument
            case "/new":
                self._session_id = None
            case "/save" if argument:
                self._save(Path(argument).expanduser())
            case "/model" | "/system" | "/save":
                self._console.print(f"{command} needs an argument; see /help", style="red")
            case _:
                self._console.print(f"{command} is no command; see /help", style="red", markup=False)

    def _say(self, content: str) -> None:
        messages = [{"role": "user", "content": content}]
        body: dict[str, Any] = {"messages": messages, "session_id": self._session_id or "new", "stream": True}
        body["temperature"] = self._temperature
        body |= {key: value for key, value in (("model", self._model), ("system", self._system)) if value is not None}
        try:
            for event, data in self._stream(body):
                if event == "start":
                    self._session_id = data["session_id"]
                    if data["dropped_turn_ids"]:
                        self._console.print("(the oldest turns no longer fit and are left out)", style="dim")
                elif event == "delta":
                    text: str = data["text"]
                    self._console.print(text, end="", markup=False, emoji=False, highlight=False, soft_wrap=True)
                elif event == "error":
                    raise MiniClaudeError(data["error"]["message"])
                elif event == "end" and data["finish_reason"] != "stop":
                    reason = "cut at max_tokens" if data["finish_reason"] == "length" else "stopped by the server"
                    self._console.print(f" ({reason})", end="", style="dim")
        except KeyboardInterrupt:  # closing the stream has aborted the reply; what came is saved
            self._console.print(" (stopped)", end="", style="dim")
        finally:
            self._console.print()

    def _stream(self, body: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
        """Server-sent events as (event, data)."""
        try:
            with self._client.http.stream("POST", "/api/v1/chat/completions", json=body) as response:
                if not response.is_success:
                    response.read()
                    self._client.raise_for(response)
                event = ""
                for line in response.iter_lines():
                    if line.startswith("event:"):
                        event = line.removeprefix("event:").strip()
                    elif line.startswith("data:"):
                        yield event, json.loads(line.removeprefix("data:"))
        except httpx.TransportError as error:
            raise self._client.unreachable() from error

    def _save(self, path: Path) -> None:
        if self._session_id is None:
            raise MiniClaudeError("There is nothing to save yet.")
        session = self._client.call("GET", f"/api/v1/chat/sessions/{self._session_id}")
        path.write_text(json.dumps(session, indent=2, ensure_ascii=False) + "\n")
        self._console.print(f"saved to {path}", style="dim", markup=False)
