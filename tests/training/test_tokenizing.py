"""What the loss sees, for every template of the tiny models."""

import pytest
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing

from mini_claude.models.causal_lm import CausalLM
from mini_claude.models.echo_model import END_OF_TURN, EchoModel
from mini_claude.models.tokenizer_files import TokenizerSummary
from mini_claude.training.examples import (
    Conversation,
    PlainText,
    Preference,
    RowProblem,
    TokenizedExample,
    TokenizedPreference,
)
from mini_claude.training.tokenizing import tokenize
from mini_claude.types import Message

from ..models.conftest import MakeTokenizer, byte_level, make_tokenizer, sentencepiece  # noqa: F401
from ..models.test_causal_lm import STYLES

ECHO = EchoModel(context_length=64)
QUESTION = Message("user", "Hello there")
EXCHANGE = (QUESTION, Message("assistant", "I am fine."), Message("user", "What?"), Message("assistant", "Paris"))


@pytest.fixture(params=STYLES)
def styled(request: pytest.FixtureRequest) -> tuple[str, CausalLM]:
    style = STYLES[request.param]
    make: MakeTokenizer = request.getfixturevalue("make_tokenizer")
    base: Tokenizer = request.getfixturevalue(style.base)
    model = CausalLM(
        "tiny",
        TokenizerSummary.of(make(base, style.template, style.special, style.shown, **style.roles)),
        context_length=128,
    )
    return request.param, model


def supervised_text(model: CausalLM | EchoModel, example: TokenizedExample) -> str:
    pairs = zip(example.token_ids, example.supervised, strict=True)
    return b"".join(model.codec.token_bytes(token) for token, seen in pairs if seen).decode()


def test_answers_with_their_ends_are_supervised_and_nothing_else(styled: tuple[str, CausalLM]) -> None:
    name, model = styled
    style = STYLES[name]
    example = tokenize(Conversation(EXCHANGE, row=3), model, 128)
    assert isinstance(example, TokenizedExample)
    assert supervised_text(model, example) == "".join(f"{style.lead}{a}{style.end}" for a in ("I am fine.", "Paris"))
    assert (example.row, example.truncated) == (3, 0)


@pytest.mark.parametrize(("unlearned", "answer"), [((1,), "Paris"), ((3,), "I am fine.")])
def test_an_answer_that_is_there_to_be_read_is_not_supervised(
    styled: tuple[str, CausalLM], unlearned: tuple[int, ...], answer: str
) -> None:
    name, model = styled
    style = STYLES[name]
    example = tokenize(Conversation(EXCHANGE, 3, unlearned), model, 128)
    assert isinstance(example, TokenizedExample)
    assert example.token_ids == model.render(EXCHANGE, add_generation_prompt=False).token_ids
    assert supervised_text(model, example) == f"{style.lead}{answer}{style.end}"


def test_of_a_preference_only_the_last_answer_is_supervised(styled: tuple[str, CausalLM]) -> None:
    name, model = styled
    style = STYLES[name]
    pair = tokenize(Preference(EXCHANGE[:3], "Paris", "The fox", row=1), model, 128)
    assert isinstance(pair, TokenizedPreference)
    assert supervised_text(model, pair.chosen) == f"{style.lead}Paris{style.end}"
    assert supervised_text(model, pair.rejected) == f"{style.lead}The fox{style.end}"


def test_plain_text_is_supervised_to_its_eos_but_for_its_first_token(styled: tuple[str, CausalLM]) -> None:
    name, model = styled
    style = STYLES[name]
    example = tokenize(PlainText("Hello there", row=1), model, 128)
    assert isinstance(example, TokenizedExample)
    assert example.supervised == (False,) + (True,) * (len(example.token_ids) - 1)
    text = model.codec.decode(example.token_ids)
    assert text.strip() == "Hello there"
    assert example.token_ids[-1] == model.codec.control_tokens[style.roles["eos_token"]]


def test_control_tokens_in_plain_text_stay_text(styled: tuple[str, CausalLM]) -> None:
    _, model = styled
    for token in model.codec.control_tokens:
        example = tokenize(PlainText(f"a{token}b", row=1), model, 128)
        assert isinstance(example, TokenizedExample)
        assert not set(example.token_ids[1:-1]) & set(model.codec.control_tokens.values())


def test_a_long_example_is_cut_at_the_end_and_says_by_how_much() -> None:
    conversation = Conversation((QUESTION, Message("assistant", "x" * 30)), row=1)
    whole = tokenize(conversation, ECHO, 64)
    cut = tokenize(conversation, ECHO, 20)
    assert isinstance(whole, TokenizedExample)
    assert isinstance(cut, TokenizedExample)
    assert cut.token_ids == whole.token_ids[:20]
    assert cut.supervised == whole.supervised[:20]
    assert cut.truncated == len(whole.token_ids) - 20


def test_the_models_context_is_a_limit_too() -> None:
    example = tokenize(PlainText("x" * 100, row=1), ECHO, 1000)
    assert isinstance(example, TokenizedExample)
    assert len(example.token_ids) == ECHO.context_length
    assert example.truncated == 101 - ECHO.context_length


@pytest.mark.parametrize(
    ("example", "reason"),
    [
        (Conversation((QUESTION,), row=7), "no message is the assistant's"),
        (Conversation((QUESTION, Message("assistant", "late")), row=7), "cut to max_length 8 before an answer begins"),
        (PlainText("", row=7), "text this short"),
        (Preference((Message("user", "long" * 9),), "a", "b", row=7), "nothing of the chosen answer"),
    ],
)
def test_an_example_that_teaches_nothing_is_a_problem_of_its_row(
    example: Conversation | PlainText | Preference, reason: str
) -> None:
    problem = tokenize(example, ECHO, 8)
    assert isinstance(problem, RowProblem)
    assert problem.row == 7
    assert reason in problem.reason


def test_plain_text_begins_with_bos_where_the_tokenizer_says_so(
    make_tokenizer: MakeTokenizer,  # noqa: F811
    byte_level: Tokenizer,  # noqa: F811
) -> None:
    tokenizer = make_tokenizer(byte_level, None, ["<s>", "</s>"], bos_token="<s>", eos_token="</s>")
    bos = tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", bos)])
    example = tokenize(
        PlainText("fox", row=1), CausalLM("tiny", TokenizerSummary.of(tokenizer), context_length=128), 128
    )
    assert isinstance(example, TokenizedExample)
    assert example.token_ids.index(bos) == 0
    assert example.token_ids.count(bos) == 1
    assert example.supervised == (False,) + (True,) * (len(example.token_ids) - 1)


def test_a_role_that_the_model_lacks_is_a_problem_of_its_row(
    make_tokenizer: MakeTokenizer,  # noqa: F811
    sentencepiece: Tokenizer,  # noqa: F811
) -> None:
    style = STYLES["gemma"]
    tokenizer = make_tokenizer(sentencepiece, style.template, style.special, style.shown, **style.roles)
    model = CausalLM("tiny", TokenizerSummary.of(tokenizer), context_length=128)
    problem = tokenize(Conversation((Message("system", "x"), *EXCHANGE), row=5), model, 128)
    assert isinstance(problem, RowProblem)
    assert "no system role" in problem.reason


def test_the_end_of_turn_is_learned() -> None:
    example = tokenize(Conversation((QUESTION, Message("assistant", "x")), row=1), ECHO, 64)
    assert isinstance(example, TokenizedExample)
    assert [token for token, seen in zip(example.token_ids, example.supervised, strict=True) if seen] == [
        ord("x"),
        END_OF_TURN,
    ]
