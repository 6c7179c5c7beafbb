"""A conversation in the terminal, line by line, with a server that echoes."""

import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr

from mini_claude.runtime.messages import StartChat
from mini_claude.terminal.chat import TerminalChat
from mini_claude.types import Message
from mini_claude.utils.config import Settings

from .conftest import CONTEXT_LENGTH, RunningSite
from .user import Keyboard, User, delta, end

pytestmark = pytest.mark.timeout(60)

LONG = "x" * (CONTEXT_LENGTH // 4)  # together with its echo too long to be kept


@pytest.fixture
def user(site: RunningSite) -> Iterator[User]:
    user = User(site.settings)
    yield user
    user.client.http.close()


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Ctrl-C interrupts, also where these tests run in the background of a shell, which ignores it there."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def asked(site: RunningSite) -> tuple[Message, ...]:
    """The messages of the last request that reached the engine."""
    request = site.runtime.requests[-1]
    assert isinstance(request, StartChat)
    return request.messages


def until(condition: Callable[[], bool]) -> None:
    """Wait for something that the server does."""
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_reply_appears_while_it_is_being_written(site: RunningSite, user: User) -> None:
    site.runtime.pause_after = 6  # held up until the screen shows its beginning

    def open_valve(text: str) -> None:
        if "hel" in text:
            site.open_valve()

    user.screen.on_write = open_valve
    assert user.types("hello there") == "hello there\n"


def test_text_is_shown_as_it_is_written(user: User) -> None:
    text = "[bold]x[/bold] [/] :smile: 'q' 1.5 \\[red] " + "word " * 30 + "é日本"
    assert user.types(text) == text + "\n"  # each byte in a delta of its own
    user.answered_by(delta(text) + end("stop"))
    assert user.types("hello") == text + "\n"


def test_the_conversation_goes_on_in_one_session_until_a_new_one_is_asked_for(site: RunningSite, user: User) -> None:
    user.types("one")
    user.types("two")
    assert [message.role for message in asked(site)] == ["user", "assistant", "user"]
    assert user.types("/new") == ""
    user.types("three")
    assert asked(site) == (Message("user", "three"),)


def test_the_temperature_and_the_system_prompt_are_sent(site: RunningSite) -> None:
    user = User(site.settings, system="be brief", temperature=0.75)
    user.types("hello")
    assert asked(site)[0] == Message("system", "be brief")
    assert site.runtime.requests[-1].params.temperature == 0.75
    assert user.types("/system be kind  ") == ""
    user.types("again")
    assert asked(site)[0] == Message("system", "be kind")
    assert len([message for message in asked(site) if message.role == "system"]) == 1
    user.client.http.close()


def test_another_model_answers_from_then_on(site: RunningSite, user: User) -> None:
    assert user.types("/model dialogpt-small") == ""
    user.types("hello")
    assert set(site.runtime.loaded) == {"dialogpt-small"}


def test_an_unknown_model_is_an_error_at_once_and_the_old_one_stays(site: RunningSite, user: User) -> None:
    assert "There is no model 'nothing'" in user.types("/model nothing").replace("\n", " ")
    assert user.types("hello") == "hello\n"
    assert set(site.runtime.loaded) == {"smollm2-135m"}


def test_the_list_shows_every_model_with_its_state(user: User) -> None:
    user.types("hello")
    shown = dict(line.split() for line in user.types("/models").splitlines())
    assert shown["smollm2-135m"] == "ready"
    assert shown["dialogpt-small"] == "available"


def test_a_conversation_is_saved_as_json_with_all_its_turns(user: User, tmp_path: Path) -> None:
    user.types("grüße 日本")
    session = user.saves(tmp_path / "talk.json")
    assert [(turn["role"], turn["content"]) for turn in session["turns"]] == [
        ("user", "grüße 日本"),
        ("assistant", "grüße 日本"),
    ]
    assert "grüße" in (tmp_path / "talk.json").read_text(encoding="utf-8")


def test_what_cannot_be_saved_is_said(user: User, tmp_path: Path) -> None:
    assert user.types(f"/save {tmp_path}/x.json") == "There is nothing to save yet.\n"
    user.types("hello")
    assert "Is a directory" in user.types(f"/save {tmp_path}").replace("\n", " ")
    assert list(tmp_path.glob("*.json")) == []


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_in_mid_reply_stops_the_reply_and_not_the_program(site: RunningSite, user: User, tmp_path: Path) -> None:
    site.runtime.pause_after = 6

    def press_ctrl_c(text: str) -> None:
        if "hel" in text:
            user.screen.on_write = None
            signal.raise_signal(signal.SIGINT)

    user.screen.on_write = press_ctrl_c
    try:
        shown = user.types("hello there")
    except KeyboardInterrupt:
        pytest.fail("it stopped the program")
    assert shown.startswith("hel")
    assert shown.endswith("(stopped)\n")
    until(lambda: user.saves(tmp_path / "talk.json")["turns"][-1]["status"] == "done")
    stopped = user.saves(tmp_path / "talk.json")["turns"][-1]
    assert stopped["finish_reason"] == "abort"
    assert "hello there".startswith(stopped["content"])
    site.runtime.pause_after = None
    assert user.types("again").endswith("again\n")


def test_an_engine_that_dies_in_mid_reply_is_one_sentence_and_the_next_line_works(
    site: RunningSite, user: User
) -> None:
    site.runtime.die_after = 6
    shown = user.types("hello there")
    assert shown.startswith("hello\n")
    assert "engine process ended" in shown
    site.runtime.die_after = None
    assert user.types("again").endswith("again\n")


def test_a_reply_that_reached_its_limit_says_so(user: User) -> None:
    user.answered_by(delta("so far") + end("length"))
    assert user.types("hello") == "so far (cut at max_tokens)\n"


def test_a_reply_that_was_stopped_elsewhere_says_so(site: RunningSite, user: User) -> None:
    site.runtime.pause_after = 6

    def stop(text: str) -> None:
        if "hel" in text:
            user.screen.on_write = None
            site.loop.call_soon_threadsafe(site.runtime.engine.abort, site.runtime.requests[-1].request_id)
            site.open_valve()

    user.screen.on_write = stop
    assert user.types("hello there") == "hello  (stopped by the server)\n"


def test_it_is_said_when_the_oldest_turns_no_longer_fit(user: User) -> None:
    assert "no longer fit" not in user.types(LONG)
    assert user.types("again").startswith("(the oldest turns no longer fit")


def test_no_server_is_one_sentence_with_the_way_out(closed_port: int) -> None:
    user = User(Settings(port=closed_port))
    sentence = f"No server answers at http://127.0.0.1:{closed_port}; start one with `mini-claude serve`."
    for line in ("hello", "/models", "/model default"):
        assert user.types(line).split() == sentence.split()
    user.client.http.close()


def test_a_server_with_keys_gets_the_one_of_the_settings(site: RunningSite, user: User) -> None:
    key = site.new_key()
    assert "This server needs an API key" in user.types("hello")
    other = User(site.settings.model_copy(update={"api_key": SecretStr(key)}))
    assert other.types("hello") == "hello\n"
    other.client.http.close()


@pytest.mark.parametrize(
    "line",
    [
        "/",
        "/nothing",
        "/model",
        "/system",
        "/save",
        "/model ../../x",
        "/model ?x=1#y",
        "/model \x1b[A",
        "/save ~nobody-has-this-name/x",
        "/save a\0b",
        "\udcff",
        " ",
    ],
)
def test_no_line_ends_the_program_without_a_word(user: User, line: str) -> None:
    user.types("hello")
    assert user.types(line).strip()
    assert user.types("again").endswith("again\n")


def test_help_names_every_command(user: User) -> None:
    shown = user.types("/help")
    assert all(command in shown for command in ("/model", "/models", "/system", "/new", "/save", "/quit", "Ctrl-C"))


@pytest.mark.parametrize("end", ["/quit", "/exit", EOFError])
def test_a_conversation_lasts_until_the_user_leaves(
    site: RunningSite, user: User, end: str | type[BaseException]
) -> None:
    keys: list[str | type[BaseException]] = ["  hello ", "", KeyboardInterrupt, "again", end]
    TerminalChat(user.client, Keyboard(user.screen, keys)).run()
    shown = user.screen.getvalue()
    assert "(Ctrl-D leaves)" in shown
    assert [message.content for message in asked(site) if message.role == "user"] == ["hello", "again"]
