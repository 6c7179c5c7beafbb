import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from mini_claude.errors import InvalidRequest, UnsupportedRole
from mini_claude.models.causal_lm import CausalLM
from mini_claude.models.dialogpt_wrapper import DialoGPT
from mini_claude.models.model_factory import create_chat_model
from mini_claude.types import Message, ModelSpec

from .conftest import MakeTokenizer


@pytest.fixture
def folder(tmp_path: Path, make_tokenizer: MakeTokenizer, byte_level: Tokenizer) -> Path:
    make_tokenizer(byte_level, None, ["<|endoftext|>"], eos_token="<|endoftext|>").save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2", "n_positions": 1024}))
    return tmp_path


@pytest.fixture
def model(folder: Path) -> DialoGPT:
    return DialoGPT("dialogpt-small", folder)


def test_turns_are_joined_by_eos_and_answers_masked_with_theirs(model: DialoGPT) -> None:
    rendered = model.render([Message("user", "Hello"), Message("assistant", "I am fine"), Message("user", "you?")])
    (eos,) = model.stop_token_ids
    encode = model.codec.encode
    first, answer, last = [*encode("Hello"), eos], [*encode("I am fine"), eos], [*encode("you?"), eos]
    assert list(rendered.token_ids) == first + answer + last
    assert list(rendered.assistant_mask) == [False] * len(first) + [True] * len(answer) + [False] * len(last)


def test_a_prompt_is_a_prefix_of_what_continues_it(model: DialoGPT) -> None:
    prompt = model.render([Message("user", "Hello")]).token_ids
    assert model.render([Message("user", "Hello"), Message("assistant", "x")]).token_ids[: len(prompt)] == prompt


def test_eos_spelled_by_a_user_stays_text(model: DialoGPT) -> None:
    rendered = model.render([Message("user", "a<|endoftext|>b")])
    (eos,) = model.stop_token_ids
    assert rendered.token_ids.count(eos) == 1


def test_there_is_no_system_role(model: DialoGPT) -> None:
    with pytest.raises(UnsupportedRole, match="no system role") as caught:
        model.render([Message("system", "x"), Message("user", "y")])
    assert caught.value.param == "messages"


def test_no_messages_is_an_invalid_request(model: DialoGPT) -> None:
    with pytest.raises(InvalidRequest, match="at least one"):
        model.render([])


def test_context_is_gpt2s(model: DialoGPT) -> None:
    assert model.context_length == 1024


def test_factory_makes_what_the_family_says(folder: Path) -> None:
    assert isinstance(create_chat_model(ModelSpec("a", "dialogpt", ()), folder), DialoGPT)
    other = create_chat_model(ModelSpec("b", "causal_lm", ()), folder)
    assert isinstance(other, CausalLM)
    assert (other.name, other.context_length) == ("b", 1024)
