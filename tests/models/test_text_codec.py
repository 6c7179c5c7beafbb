import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from mini_claude.models.text_codec import TokenizerCodec

from .conftest import MakeTokenizer


@pytest.fixture(params=["byte_level", "sentencepiece"])
def codec(request: pytest.FixtureRequest, make_tokenizer: MakeTokenizer) -> TokenizerCodec:
    base: Tokenizer = request.getfixturevalue(request.param)
    return TokenizerCodec(make_tokenizer(base, None, ["<|end|>", "<s>"], ["<think>", "   "]).backend_tokenizer)


@given(text=st.text())
@settings(max_examples=200, deadline=None)
def test_bytes_of_the_tokens_are_the_bytes_of_the_text(byte_level: Tokenizer, text: str) -> None:
    codec = TokenizerCodec(byte_level)
    assert b"".join(map(codec.token_bytes, codec.encode(text))) == text.encode()


@given(text=st.text(st.characters(exclude_characters="▁", exclude_categories=["Cs"]), min_size=1))
@settings(max_examples=200, deadline=None)
def test_sentencepiece_text_comes_back_after_its_prefix_space(sentencepiece: Tokenizer, text: str) -> None:
    codec = TokenizerCodec(sentencepiece)
    first = "" if text.startswith(" ") else " "
    assert codec.decode(codec.encode(text)) == first + text
    assert codec.decode(codec.encode_after("text", text)) == text


def test_no_spelling_yields_a_control_token(codec: TokenizerCodec) -> None:
    control = set(codec.control_tokens.values())
    for name in codec.control_tokens:
        for text in (name, f"x{name}y", name * 3, f" {name} "):
            ids = codec.encode(text)
            assert control.isdisjoint(ids)
            assert codec.decode(ids).strip() == text.strip()


def test_runs_of_spaces_are_ordinary_text(codec: TokenizerCodec) -> None:
    assert "   " not in codec.control_tokens
    assert any(codec.token_bytes(token) == b"   " for token in codec.encode("a   b"))


def test_control_tokens_have_a_name_and_no_text(codec: TokenizerCodec) -> None:
    end = codec.control_tokens["<|end|>"]
    assert codec.token_bytes(end) == b"<|end|>"
    assert codec.decode([end]) == ""


def test_tokens_for_readers_are_shown_though_users_cannot_write_them(codec: TokenizerCodec) -> None:
    assert codec.decode([codec.control_tokens["<think>"]]) == "<think>"


def test_incomplete_utf8_shows_as_replacement_character(codec: TokenizerCodec) -> None:
    ids = codec.encode_after("text", "🦊")
    assert len(ids) > 1
    assert codec.decode(ids[:-1]) == "\ufffd"
    assert b"".join(map(codec.token_bytes, ids)) == "🦊".encode()


def test_ids_past_the_vocabulary_have_no_bytes(codec: TokenizerCodec) -> None:
    assert codec.token_bytes(codec.vocab_size + 5) == b""


def test_control_tokens_inside_the_vocabulary_itself_are_spelled_out() -> None:
    vocab = {"<end>": 0, "<": 1, "e": 2, "n": 3, "d": 4, ">": 5, "hello": 6, "<unk>": 7}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["<end>", "<unk>"])
    codec = TokenizerCodec(tokenizer)
    assert codec.encode("hello <end> hello") == [6, 1, 2, 3, 4, 5, 6]
    assert codec.encode("hello nobody") == [6, 3, 4]  # what the vocabulary lacks gives no unknown token


def test_long_unknown_text_takes_linear_time() -> None:
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0}, unk_token="<unk>"))
    tokenizer.add_special_tokens(["<unk>"])
    codec = TokenizerCodec(tokenizer)
    assert codec.encode("x" * 20_000) == []


def test_names_that_control_tokens_get_inside_cannot_be_spelled_either(codec: TokenizerCodec) -> None:
    control = set(codec.control_tokens.values())
    for token in control:
        text = f"\ufdd0{token}\ufdd0"
        assert control.isdisjoint(codec.encode(text))
        assert codec.decode(codec.encode_after("text", text)) == text
