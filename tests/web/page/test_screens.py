"""What a page shows and asks, by its own name."""

import gradio as gr

from mini_claude.web.page.screens import Screens


def page(name: str) -> gr.Request:
    return gr.Request(session_hash=name)


def test_a_reply_is_written_only_while_its_page_shows_it() -> None:
    screens = Screens()
    first, other = screens.turn(page("a")), screens.turn(page("b"))
    assert first()
    second = screens.turn(page("a"))
    assert (first(), second(), other()) == (False, True, True)
    screens.close(page("a"))
    assert (second(), other()) == (False, True)


def test_a_page_that_opens_gives_way_to_a_visitor_who_was_quicker() -> None:
    screens = Screens()
    opened = screens.opened(page("a"))
    assert opened is not None
    assert opened()
    asked = screens.turn(page("b"))
    assert screens.opened(page("b")) is None
    assert asked()


def test_a_new_chat_gives_way_to_the_first_question_in_it_and_to_no_other() -> None:
    screens = Screens()
    before = screens.turn(page("a"), "first chat")
    emptied = screens.emptied(page("a"), "second chat")
    assert emptied is not None
    assert (before(), emptied()) == (False, True)
    asked = screens.turn(page("a"), "second chat")
    assert screens.emptied(page("a"), "second chat") is None
    assert asked()


def test_enter_pressed_twice_is_one_question() -> None:
    screens = Screens()
    with screens.asking(page("a"), "hello") as first:
        with screens.asking(page("a"), "hello") as again, screens.asking(page("b"), "hello") as elsewhere:
            assert (first, again, elsewhere) == (True, False, True)
        with screens.asking(page("a"), "hello") as still:
            assert not still
    with screens.asking(page("a"), "hello") as later:
        assert later
