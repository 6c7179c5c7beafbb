"""The time that a reply may take, whatever asked for it."""

from pathlib import Path
from typing import Any, Final

import pytest

from .clients import OPENAI, ask, native_stream, new_connection, openai_stream, turns, user, web_socket
from .conftest import serving_model

pytestmark = [pytest.mark.real_model, pytest.mark.alone]
LONG: Final = "Write a very long story about a fox, a river, a mountain and everything that happened there. " * 10
GREEDY: Final[dict[str, Any]] = {"temperature": 0, "max_tokens": 900}  # which would take seconds


def test_a_reply_that_takes_too_long_ends_with_what_was_said_and_the_reason(
    data_dir: Path, smollm2_folder: Path
) -> None:
    with serving_model(data_dir, smollm2_folder, max_reply_seconds="0.2") as server:
        for client in (native_stream, openai_stream, web_socket):
            told = client(server.url, LONG, **GREEDY)
            assert told.ending == "reply_time_limit"
            assert told.text
        with new_connection(server.url) as http:
            answer = http.post(OPENAI, json={"messages": user(LONG), **GREEDY})
        assert answer.status_code == 400, answer.text
        assert answer.json()["error"]["param"] == "max_tokens"
        told = native_stream(server.url, LONG, session_id="new", **GREEDY)
        assert told.session_id is not None
        stored = turns(server.url, told.session_id)[-1]
        assert (stored["status"], stored["content"]) == ("failed", told.text)
        short = ask(server.url, "Hello", max_tokens=1)
        assert (short.status_code, short.json()["finish_reason"]) == (200, "length")
