"""Which turns are shown, which versions there are besides, and texts that cannot do harm."""

import pytest

from mini_claude.data.records import ChatSession, Conversation, Turn
from mini_claude.web.page.conversation import original_text, other_branches, safe_markdown, shown_path


def turn(name: str, parent: str | None, created_at: float, **changes: object) -> Turn:
    role = "user" if name.startswith("u") else "assistant"
    fields: dict[str, object] = {"status": "done", "content": f"text of {name}", **changes}
    return Turn(name, "s", parent, role, created_at=created_at, **fields)  # type: ignore[arg-type]


def conversation(head: str | None, *turns: Turn) -> Conversation:
    return Conversation(ChatSession("s", "local", "A title", None, None, head, 0.0, 0.0), turns)


QUESTION, ANSWER = turn("u1", None, 1), turn("a1", "u1", 2)


def ids(path: tuple[Turn, ...]) -> list[str]:
    return [each.id for each in path]


def test_the_path_leads_from_the_root_to_the_head() -> None:
    other = turn("a2", "u1", 3)
    assert ids(shown_path(conversation("a1", QUESTION, ANSWER, other))) == ["u1", "a1"]


def test_a_reply_that_is_being_written_is_shown_though_the_head_is_older() -> None:
    running = turn("a2", "u1", 3, status="running", content="")
    assert ids(shown_path(conversation("a1", QUESTION, ANSWER, running))) == ["u1", "a2"]


def test_a_failure_is_shown_until_something_newer_came() -> None:
    failed = turn("a2", "u1", 3, status="failed", content="")
    assert ids(shown_path(conversation("a1", QUESTION, ANSWER, failed))) == ["u1", "a2"]
    newer = turn("a3", "u1", 4)
    assert ids(shown_path(conversation("a3", QUESTION, ANSWER, failed, newer))) == ["u1", "a3"]


def test_a_first_reply_that_came_to_nothing_still_shows_its_question() -> None:
    empty = turn("a1", "u1", 2, content="", finish_reason="abort")
    assert ids(shown_path(conversation(None, QUESTION, empty))) == ["u1", "a1"]


def test_an_empty_session_has_an_empty_path() -> None:
    assert shown_path(conversation(None)) == ()


def test_other_versions_are_named_and_lead_to_their_newest_answer() -> None:
    edited, reply, follow_up, last = turn("u2", None, 3), turn("a2", "u2", 4), turn("u3", "a2", 5), turn("a3", "u3", 6)
    whole = conversation("a1", QUESTION, ANSWER, edited, reply, follow_up, last)
    (branch,) = other_branches(whole, shown_path(whole))
    assert branch.label == "Question 1, version 2 of 2: text of u2"
    assert branch.leaf_id == "a3"


def test_a_version_without_a_finished_answer_is_not_offered() -> None:
    failed = turn("a2", "u1", 3, status="failed")
    whole = conversation("a1", QUESTION, ANSWER, failed)
    assert other_branches(whole, (QUESTION, ANSWER)) == []


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("<script>alert(1)</script>", "&lt;script>alert(1)&lt;/script>"),
        ("`<b>` stays", "`<b>` stays"),
        ("```html\n<b>\n```\n<b>", "```html\n<b>\n```\n&lt;b>"),
        ("```\n<unfinished", "```\n<unfinished"),
        ("![x](http://a/b.png)", "!\u200b[x](http://a/b.png)"),
        ("2 < 3 & 4", "2 &lt; 3 &amp; 4"),
    ],
)
def test_html_shows_as_text_and_images_become_links(text: str, shown: str) -> None:
    assert safe_markdown(text) == shown
    assert original_text(shown) == text
