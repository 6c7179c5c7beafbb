"""Text is valid at every moment, and nothing is lost."""

from hypothesis import given
from hypothesis import strategies as st

from mini_claude.engine.detokenizer import Detokenizer
from mini_claude.models.echo_model import END_OF_TURN, ByteCodec


def test_a_character_of_four_tokens_appears_when_it_is_complete() -> None:
    detokenizer = Detokenizer(ByteCodec())
    assert [detokenizer.push(byte) for byte in "🦊!".encode()] == ["", "", "", "🦊", "!"]
    assert detokenizer.flush() == ""


def test_an_unfinished_character_is_flushed_as_a_replacement() -> None:
    detokenizer = Detokenizer(ByteCodec())
    assert [detokenizer.push(byte) for byte in "a🦊".encode()[:3]] == ["a", "", ""]
    assert detokenizer.flush() == "\ufffd"


def test_control_tokens_add_nothing() -> None:
    detokenizer = Detokenizer(ByteCodec())
    assert [detokenizer.push(token_id) for token_id in (72, END_OF_TURN, 105)] == ["H", "", "i"]


def test_whitespace_is_text() -> None:
    detokenizer = Detokenizer(ByteCodec())
    assert [detokenizer.push(byte) for byte in b" \n"] == [" ", "\n"]


@given(st.text())
def test_pieces_join_to_the_text(text: str) -> None:
    detokenizer = Detokenizer(ByteCodec())
    pieces = [detokenizer.push(byte) for byte in text.encode()]
    assert "".join(pieces) + detokenizer.flush() == text


@given(st.binary())
def test_any_bytes_give_what_decoding_them_at_once_gives(data: bytes) -> None:
    detokenizer = Detokenizer(ByteCodec())
    pieces = [detokenizer.push(byte) for byte in data]
    assert "".join(pieces) + detokenizer.flush() == data.decode(errors="replace")
