from hypothesis import given
from hypothesis import strategies as st

from mini_claude.models.echo_model import END_OF_TURN, ByteCodec, EchoModel
from mini_claude.types import Message


def test_turns_are_marker_bytes_and_end() -> None:
    rendered = EchoModel().render([Message("user", "Hi"), Message("assistant", "Yo")])
    assert rendered.token_ids == (258, 72, 105, 256, 259, 89, 111, 256, 259)
    assert rendered.assistant_mask == (False,) * 5 + (True,) * 3 + (False,)


@given(text=st.text(st.characters(exclude_categories=[])))
def test_no_text_becomes_a_control_token_and_all_text_comes_back(text: str) -> None:
    codec = ByteCodec()
    ids = codec.encode(text)
    assert all(token < 256 for token in ids)
    if text.isascii() or text.encode("utf-8", "ignore").decode() == text:
        assert codec.decode(ids) == text


def test_control_tokens_have_names_and_no_text() -> None:
    codec = EchoModel().codec
    assert codec.token_bytes(END_OF_TURN) == b"<|end|>"
    assert codec.decode([72, END_OF_TURN, 259]) == "H"
    assert codec.vocab_size == 260
