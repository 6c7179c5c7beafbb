"""The time that a reply may take, whatever asked for it."""

from pathlib import Path

import pytest

from .clients import OPENAI, ask, native_stream, new_connection, openai_stream, turns, user, web_socket
from .conftest import serving

pytestmark = pytest.mark.alone
LONG = "a" * 1000  # the echo engine writes a character a token


def test_a_reply_that_takes_too_long_ends_with_what_was_said_and_the_reason(data_dir: Path) -> None:
    with serving(data_dir, engine="echo", max_reply_seconds="0.001") as server:
        for told in (native_stream(server.url, LONG), openai_stream(server.url, LONG), web_socket(server.url, LONG)):
            assert told.ending == "reply_time_limit"
            assert LONG.startswith(told.text)
            assert told.text
        with new_connection(server.url) as http:
            answer = http.post(OPENAI, json={"messages": user(LONG)})
        assert answer.status_code == 400, answer.text
        assert answer.json()["error"]["param"] == "max_tokens"
        told = native_stream(server.url, LONG, session_id="new")
        assert told.session_id is not None
        stored = turns(server.url, told.session_id)[-1]
        assert (stored["status"], stored["content"]) == ("failed", told.text)
        assert ask(server.url, "a").json()["response"] == "a"
