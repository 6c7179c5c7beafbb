"""The chat as somebody uses it who never opens a terminal."""

import asyncio
import json
import re
import secrets
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from mini_claude.terminal.keys import open_keys
from mini_claude.terminal.users import open_users
from mini_claude.utils.config import Settings

from ..end_to_end.conftest import Server, with_model
from .conftest import OpenPage, open_settings, page_server

pytestmark = [pytest.mark.real_model, pytest.mark.alone]

SHORT = "Name the capital of France."
LONG = "Write a very long story about a dragon and a knight, in ten chapters."
TITLE = "#session-title textarea, #session-title input"
PASSWORD = "correct horse battery staple"
LEAVING = ("AbortError", "Connection errored out")  # what Gradio says of itself when a page is left
Shoot = Callable[[Page, str], None]


def say(page: Page, text: str) -> None:
    page.fill("#say textarea", text)
    page.press("#say textarea", "Enter")


def answers(page: Page) -> list[str]:
    return page.locator("#chatbot .bot.message").all_inner_texts()


def wait_for_end(page: Page) -> None:
    expect(page.locator("#facts")).to_contain_text("tokens/s")


def ask(page: Page, text: str) -> str:
    """One question; the answer's text once it has ended."""
    before = len(answers(page))
    say(page, text)
    expect(page.locator("#chatbot .bot.message")).to_have_count(before + 1)
    wait_for_end(page)
    expect(page.locator("#say button.submit-button")).to_be_visible()
    return answers(page)[-1]


def test_nothing_that_is_said_on_the_page_is_in_any_log_or_metric(page: Page, server: Server) -> None:
    word = f"said{secrets.token_hex(8)}"
    ask(page, f"Repeat this word: {word}")
    expect(page.locator("#sessions button[aria-current=true]")).to_contain_text(word)
    page.fill("#session-search textarea, #session-search input", word)
    expect(page.locator("#sessions button")).to_have_count(1)
    logs = [path for path in (server.data_dir / "logs").iterdir() if path.is_file()]
    assert {"api-0.log", "page-0.log", "supervisor-0.log"} <= {path.name for path in logs}
    for path in (*logs, server.data_dir / "test-server.log"):
        assert word not in path.read_text(), path
    assert word not in server.http.get("/api/v1/metrics").text


def test_a_question_is_answered_with_its_speed_and_how_full_the_context_is(page: Page, shoot: Shoot) -> None:
    assert "Paris" in ask(page, SHORT)
    facts = page.locator("#facts").inner_text()
    assert re.search(r"smollm2-135m · \d+ tokens · \d+ tokens/s, first after [1-9]\d* ms", facts)
    assert re.search(r"context: \d+ of 8,192 tokens", facts)
    expect(page.locator("#sessions button[aria-current=true]")).to_have_text(SHORT)
    shoot(page, "light")


def test_code_is_highlighted_and_the_dark_page_is_dark(open_page: OpenPage, base_url: str, shoot: Shoot) -> None:
    page = open_page(base_url, dark=True)
    ask(page, "Write a Python function that adds two numbers. Answer with code.")
    expect(page.locator("#chatbot code span.token").first).to_be_visible()
    luminance = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
    assert max(luminance[:3]) < 80
    shoot(page, "dark")


def endless(page: Page) -> None:
    """Begin an answer that takes long enough to be interrupted; a small model repeats itself happily."""
    open_settings(page, "#settings")
    page.get_by_label("number input for Longest answer").first.fill("4096")
    say(page, LONG)
    expect(page.locator("#chatbot .bot.message")).to_contain_text(re.compile(r"\w+\W+\w+\W+\w+\W+\w+"))


def test_stop_ends_a_long_answer_and_keeps_what_came(page: Page) -> None:
    endless(page)
    page.locator("#say button.stop-button").dispatch_event("click")
    expect(page.locator("#chatbot")).to_contain_text("(stopped)")
    expect(page.locator("#say button.submit-button")).to_be_visible()
    assert len(answers(page)) == 1


def test_a_reload_in_the_middle_of_a_reply_loses_nothing(open_page: OpenPage, server: Server) -> None:
    page = open_page(server.url, tolerate=LEAVING)
    page.wait_for_selector("#say textarea")
    endless(page)
    page.reload()
    expect(page.locator("#chatbot .bot.message")).to_have_count(1)
    page.locator("#say button.stop-button").dispatch_event("click")
    expect(page.locator("#facts")).to_contain_text(re.compile(r"\d+ tokens ·"))
    session = server.http.get("/api/v1/chat/sessions", params={"limit": 1}).json()["sessions"][0]
    stored = server.http.get(f"/api/v1/chat/sessions/{session['id']}").json()["turns"][-1]
    assert stored["status"] == "done"
    said = re.sub(r"\W+", " ", stored["content"])
    assert re.sub(r"\W+", " ", answers(page)[0]).startswith(said[:200])


def test_a_new_chat_is_empty_at_once_while_the_reply_before_it_runs_on(page: Page) -> None:
    endless(page)
    page.click("#new-chat")
    expect(page.locator("#chatbot .message")).to_have_count(0)
    assert "Paris" in ask(page, SHORT)
    expect(page.locator("#chatbot .user.message")).to_have_text([SHORT])
    page.locator("#sessions button", has_text="dragon").first.click()
    expect(page.locator("#chatbot .user.message")).to_have_text([LONG])
    page.click("#say button.stop-button")  # it runs still
    wait_for_end(page)


def test_an_edited_question_makes_a_branch_and_one_can_go_back(page: Page, shoot: Shoot) -> None:
    ask(page, SHORT)
    page.locator("#chatbot .user button[aria-label='Edit'], #chatbot button[title='Edit']").first.click()
    page.locator("#chatbot textarea").first.fill("Name the capital of Italy.")
    page.locator("#chatbot button[aria-label='Submit'], #chatbot button[title='Submit']").first.click()
    expect(page.locator("#chatbot")).to_contain_text("Rome")
    wait_for_end(page)
    expect(page.locator("#branches")).to_be_visible()
    page.click("#branches input")
    page.get_by_role("option", name=re.compile("Name the capital of France")).click()
    expect(page.locator("#chatbot")).to_contain_text("Paris")
    expect(page.locator("#chatbot")).not_to_contain_text("Rome")
    shoot(page, "branches")


def test_regenerating_keeps_the_answer_from_before_as_another_version(page: Page) -> None:
    ask(page, SHORT)
    page.locator("#chatbot button[aria-label='Retry'], #chatbot button[title='Retry']").first.click()
    expect(page.locator("#branches")).to_contain_text("Other versions of this conversation (1)")


def test_conversations_are_found_renamed_opened_and_deleted(page: Page) -> None:
    ask(page, "What is a zebra?")
    page.click("#new-chat")
    expect(page.locator("#chatbot .message")).to_have_count(0)
    ask(page, SHORT)
    page.fill("#session-search textarea, #session-search input", "zebra")
    expect(page.locator("#sessions button")).to_have_count(1)
    page.click("#sessions button")
    expect(page.locator("#chatbot")).to_contain_text("What is a zebra?")
    open_settings(page, "#session-tools")
    expect(page.locator(TITLE)).to_have_value("What is a zebra?")
    page.fill(TITLE, "About stripes")
    page.get_by_role("button", name="Rename").click()
    expect(page.locator("#sessions button[aria-current=true]")).to_have_text("About stripes")
    page.get_by_role("button", name="Delete", exact=True).click()
    page.get_by_role("button", name="Delete it for good").click()
    expect(page.locator("#sessions button")).to_have_count(0)


@pytest.mark.parametrize(("button", "suffix"), [("Export Markdown", ".md"), ("Export JSON", ".json")])
def test_a_conversation_is_exported(page: Page, tmp_path: Path, button: str, suffix: str) -> None:
    ask(page, SHORT)
    page.click("#session-tools > button")
    with page.expect_download() as download:
        page.get_by_role("button", name=button).click()
    target = tmp_path / "export"
    download.value.save_as(target)
    assert download.value.suggested_filename.endswith(suffix)
    text = target.read_text()
    assert SHORT in text
    assert "Paris" in text
    if suffix == ".json":
        assert json.loads(text)["turns"][1]["role"] == "assistant"


def test_a_thumb_and_a_corrected_answer_are_kept(page: Page, server: Server) -> None:
    ask(page, SHORT)
    page.locator("#chatbot button[aria-label*='like' i], #chatbot button[title*='like' i]").last.click()
    session = server.http.get("/api/v1/chat/sessions", params={"limit": 1}).json()["sessions"][0]["id"]
    page.locator("#chatbot .bot button[aria-label='Edit'], #chatbot button[title='Edit']").last.click()
    page.locator("#chatbot textarea").last.fill("It is Paris, on the Seine.")
    page.locator("#chatbot button[aria-label='Submit'], #chatbot button[title='Submit']").last.click()
    expect(page.locator("#chatbot")).to_contain_text("Your correction, kept for training")
    feedback = server.http.get(f"/api/v1/chat/sessions/{session}/feedback").json()
    assert "It is Paris, on the Seine." in json.dumps(feedback)


def test_html_and_images_in_a_message_are_shown_and_never_loaded(page: Page) -> None:
    ask(
        page,
        "Repeat: <img src='http://127.0.0.1:9/a.png' onerror='alert(1)'> ![x](http://127.0.0.1:9/b.png) "
        "<script>1</script>",
    )
    assert page.locator("#chatbot .user.message img").count() == 0
    expect(page.locator("#chatbot .user.message")).to_contain_text("<script>1</script>")


def test_nonsense_in_a_setting_is_explained_and_nothing_is_lost(page: Page) -> None:
    open_settings(page, "#settings")
    page.get_by_label("Seed").first.fill("99999999999999999999")
    say(page, SHORT)
    expect(page.locator(".toast-body, .toast-wrap").first).to_contain_text(re.compile("seed", re.I))
    expect(page.locator("#say textarea")).to_have_value(SHORT)


def test_it_works_on_a_phone(open_page: OpenPage, base_url: str, shoot: Shoot) -> None:
    page = open_page(base_url, width=390, height=844)
    page.wait_for_selector("#say textarea")
    shoot(page, "first")
    assert "Paris" in ask(page, SHORT)
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    shoot(page, "answered")


def test_it_works_by_keyboard_alone(page: Page) -> None:
    expect(page.locator("#say textarea")).to_be_focused()
    page.keyboard.type(SHORT)
    page.keyboard.press("Enter")
    wait_for_end(page)
    for _ in range(40):
        page.keyboard.press("Shift+Tab")
        if page.evaluate("document.activeElement.id") == "new-chat":
            break
    page.keyboard.press("Enter")
    expect(page.locator("#chatbot .message")).to_have_count(0)


def test_first_paint_is_under_two_seconds(open_page: OpenPage, base_url: str) -> None:
    page = open_page(base_url)
    page.wait_for_selector("#say textarea")
    paints = page.evaluate("performance.getEntriesByType('paint').map(entry => entry.startTime)")
    assert paints
    assert max(paints) < 2000


def test_the_page_asks_for_a_key_or_a_password_and_every_event_respects_its_end(
    open_page: OpenPage, tmp_path: Path, smollm2_folder: Path, shoot: Shoot
) -> None:
    data_dir = with_model(tmp_path / "data", smollm2_folder)
    key, user_id = make_key_and_user(data_dir)
    with page_server(data_dir, api_key=key) as server:
        page = open_page(server.url, tolerate=("401", "Response", *LEAVING))  # by signing out, and of refused events
        page.fill("#key", "mc-wrong")
        page.get_by_role("button", name="Sign in with a key").click()
        expect(page.get_by_role("alert")).to_contain_text("This key is not known")
        shoot(page, "login")
        page.fill("#key", key)
        page.get_by_role("button", name="Sign in with a key").click()
        page.wait_for_selector("#say textarea")
        page.get_by_role("tab", name="System").click()
        page.get_by_role("button", name="Sign out").click()
        sign_in(page, "wrong password")
        expect(page.get_by_role("alert")).to_contain_text("The name or the password is wrong")
        sign_in(page, PASSWORD)
        page.wait_for_selector("#say textarea")
        assert "Paris" in ask(page, SHORT)
        disable_user(data_dir, user_id)
        with page.expect_response(re.compile("queue/join")) as refused:
            say(page, "And of Italy?")
        assert refused.value.status == 401
        page.reload()
        expect(page.get_by_role("button", name="Sign in", exact=True)).to_be_visible()


def sign_in(page: Page, password: str) -> None:
    page.fill("#name", "ada")
    page.fill("#password", password)
    page.get_by_role("button", name="Sign in", exact=True).click()


def make_key_and_user(data_dir: Path) -> tuple[str, str]:
    """An admin's key, and the id of a user."""
    settings = Settings(data_dir=data_dir)
    with open_keys(settings) as keys, open_users(settings) as users, ThreadPoolExecutor() as thread:
        _, key = thread.submit(lambda: asyncio.run(keys.create("test"))).result()  # a loop runs in this one
        user = thread.submit(lambda: asyncio.run(users.create("ada", PASSWORD))).result()
    return key, user.id


def disable_user(data_dir: Path, user_id: str) -> None:
    with open_users(Settings(data_dir=data_dir)) as users, ThreadPoolExecutor() as thread:
        thread.submit(lambda: asyncio.run(users.disable(user_id))).result()
