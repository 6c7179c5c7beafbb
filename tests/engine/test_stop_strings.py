"""No part of a stop string is ever shown, and nothing else is withheld for good."""

from hypothesis import given
from hypothesis import strategies as st

from mini_claude.engine.stop_strings import StopStrings

TEXTS = st.text(alphabet="abc", max_size=30)
STOPS = st.lists(st.text(alphabet="abc", min_size=1, max_size=4), max_size=4).map(tuple)


def shown(stop: tuple[str, ...], pieces: list[str]) -> tuple[str, bool]:
    """Everything that a client sees, and whether a stop string ended it."""
    stop_strings = StopStrings(stop)
    text = ""
    for piece in pieces:
        safe, stopped = stop_strings.push(piece)
        text += safe
        if stopped:
            return text, True
    return text + stop_strings.flush(), False


def test_stop_string_split_over_two_deltas_never_leaks() -> None:
    stop_strings = StopStrings(("END",))
    assert stop_strings.push("one E") == ("one ", False)
    assert stop_strings.push("ND two") == ("", True)


def test_held_text_is_released_when_it_turns_out_harmless() -> None:
    stop_strings = StopStrings(("END",))
    assert stop_strings.push("an EN") == ("an ", False)
    assert stop_strings.push("GINS") == ("ENGINS", False)


def test_held_text_is_flushed_at_the_end() -> None:
    stop_strings = StopStrings(("END",))
    assert stop_strings.push("the EN") == ("the ", False)
    assert stop_strings.flush() == "EN"


def test_the_earliest_of_several_stop_strings_wins() -> None:
    assert shown(("two", "one"), ["zero one two"]) == ("zero ", True)


def test_an_empty_stop_string_stops_nothing() -> None:
    assert shown(("",), ["text"]) == ("text", False)


@given(TEXTS, STOPS)
def test_character_by_character_no_stop_string_is_ever_visible(text: str, stop: tuple[str, ...]) -> None:
    visible, stopped = shown(stop, list(text))
    assert not any(string in visible for string in stop)
    assert text.startswith(visible)
    assert stopped == any(string in text for string in stop)
    if not stopped:
        assert visible == text


@given(TEXTS, STOPS)
def test_in_one_piece_the_text_is_cut_at_the_first_stop_string(text: str, stop: tuple[str, ...]) -> None:
    cuts = [text.find(string) for string in stop if string in text]
    assert shown(stop, [text]) == ((text[: min(cuts)], True) if cuts else (text, False))
