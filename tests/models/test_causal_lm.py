import time
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from mini_claude.errors import InvalidRequest, ModelLoadError, UnsupportedRole
from mini_claude.models.base_model import RenderedPrompt
from mini_claude.models.causal_lm import FALLBACK_TEMPLATE, CausalLM
from mini_claude.models.tokenizer_files import TokenizerSummary
from mini_claude.types import Message, Role

from .conftest import MakeTokenizer

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + "
    "'\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
LLAMA3 = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + "
    "message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}"
    "{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}"
    "{% endif %}{{ '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{'<start_of_turn>model\\n'}}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] "
    "+ ' [/INST]' }}{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'] + eos_token }}{% else %}"
    "{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)
PHI3 = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\\n' + message['content'] + '<|end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}"
)
# The parts of Qwen3's template that concern text: thinking is kept only after the last question.
QWEN3 = """\
{%- set ns = namespace(last_query_index=messages|length - 1, searching=true) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.searching and message.role == "user" %}
        {%- set ns.searching = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role != "assistant" %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- else %}
        {%- set content = message.content %}
        {%- set reasoning_content = '' %}
        {%- if '</think>' in message.content %}
            {%- set content = message.content.split('</think>')[-1].lstrip('\\n') %}
            {%- set reasoning_content = message.content.split('</think>')[0].rstrip('\\n').split('<think>')[-1] %}
            {%- set reasoning_content = reasoning_content.lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index and reasoning_content %}
            {{- '<|im_start|>' + message.role + '\\n<think>\\n' + reasoning_content.strip('\\n') }}
            {{- '\\n</think>\\n\\n' + content.lstrip('\\n') }}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\\n' + content }}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}"""
DEEPSEEK = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ '<|User|>' + message['content'] }}{% elif message['role'] == 'assistant' %}"
    "{% set content = message['content'] %}{% if '</think>' in content %}"
    "{% set content = content.split('</think>')[-1] %}{% endif %}{{ '<|Assistant|>' + content + eos_token }}"
    "{% else %}{{ message['content'] }}{% endif %}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|Assistant|><think>\\n' }}{% endif %}"
)


@dataclass(frozen=True)
class Style:
    template: str | None
    special: tuple[str | AddedToken, ...]
    end: str
    shown: tuple[str, ...] = ()
    roles: dict[str, str] = field(default_factory=dict)
    base: str = "byte_level"
    has_system: bool = True
    lead: str = ""  # what the answer's tokens hold before its text


def _rstrip(token: str) -> AddedToken:
    return AddedToken(token, rstrip=True, normalized=False, special=True)


STYLES = {
    "chatml": Style(CHATML, ("<|im_start|>", "<|im_end|>"), "<|im_end|>", roles={"eos_token": "<|im_end|>"}),
    "llama3": Style(
        LLAMA3,
        ("<|begin|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|eos|>"),
        "<|eot_id|>",
        roles={"bos_token": "<|begin|>", "eos_token": "<|eos|>"},
    ),
    "gemma": Style(
        GEMMA,
        ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"),
        "<end_of_turn>",
        roles={"bos_token": "<bos>", "eos_token": "<eos>"},
        base="sentencepiece",
        has_system=False,
    ),
    "mistral": Style(
        MISTRAL,
        (),
        "</s>",
        roles={"bos_token": "<s>", "eos_token": "</s>"},
        base="sentencepiece",
        has_system=False,
        lead=" ",
    ),
    "mistral-byte-level": Style(
        MISTRAL,
        ("<s>", "</s>", "[INST]", "[/INST]"),
        "</s>",
        roles={"bos_token": "<s>", "eos_token": "</s>"},
        has_system=False,
        lead=" ",
    ),
    "phi3": Style(
        PHI3,
        (*map(_rstrip, ("<|user|>", "<|assistant|>", "<|system|>", "<|end|>")), "<|endoftext|>"),
        "<|end|>",
        roles={"eos_token": "<|endoftext|>"},
    ),
    "qwen3": Style(
        QWEN3,
        ("<|im_start|>", "<|im_end|>", "<|endoftext|>"),
        "<|im_end|>",
        shown=("<think>", "</think>", "<tool_call>"),
        roles={"eos_token": "<|im_end|>"},
    ),
    "deepseek": Style(
        DEEPSEEK,
        ("<bos>", "<eos>", "<|User|>", "<|Assistant|>"),
        "<eos>",
        shown=("<think>", "</think>"),
        roles={"bos_token": "<bos>", "eos_token": "<eos>"},
    ),
    "fallback": Style(None, ("<s>", "</s>"), "</s>", roles={"bos_token": "<s>", "eos_token": "</s>"}, lead=" "),
}


@dataclass(frozen=True)
class Case:
    style: Style
    model: CausalLM
    tokenizer: PreTrainedTokenizerFast

    def answers(self, rendered: RenderedPrompt) -> list[str]:
        """The bytes under the mask, one string for each unbroken stretch."""
        pairs = zip(rendered.token_ids, rendered.assistant_mask, strict=True)
        return [
            b"".join(self.model.codec.token_bytes(token) for token, _ in stretch).decode()
            for masked, stretch in groupby(pairs, key=lambda pair: pair[1])
            if masked
        ]

    def controls(self, rendered: RenderedPrompt) -> list[int]:
        ids = set(self.model.codec.control_tokens.values())
        return [token for token in rendered.token_ids if token in ids]


@pytest.fixture(params=STYLES)
def case(request: pytest.FixtureRequest, make_tokenizer: MakeTokenizer) -> Case:
    style = STYLES[request.param]
    base: Tokenizer = request.getfixturevalue(style.base)
    tokenizer = make_tokenizer(base, style.template, style.special, style.shown, **style.roles)
    return Case(style, CausalLM("tiny", TokenizerSummary.of(tokenizer), context_length=128), tokenizer)


def chatml(make_tokenizer: MakeTokenizer, base: Tokenizer, template: str | None = CHATML) -> Case:
    style = STYLES["chatml"]
    tokenizer = make_tokenizer(base, template, style.special, eos_token="<|im_end|>")
    return Case(style, CausalLM("tiny", TokenizerSummary.of(tokenizer), context_length=128), tokenizer)


CONVERSATION = [
    Message("user", "Hello there"),
    Message("assistant", "I am fine.\nAnd you?"),
    Message("user", "What is the capital\n\nof France? é 🦊"),
    Message("assistant", "Paris 🦊"),
]


def as_dicts(messages: list[Message]) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in messages]


def test_mask_covers_exactly_the_answers_and_their_end_of_turn(case: Case) -> None:
    rendered = case.model.render(CONVERSATION, add_generation_prompt=False)
    answers = [message.content for message in CONVERSATION if message.role == "assistant"]
    assert case.answers(rendered) == [case.style.lead + answer + case.style.end for answer in answers]


def test_mask_covers_answers_also_after_a_system_message(case: Case) -> None:
    messages = [Message("system", "The answer is short."), *CONVERSATION]
    if not case.style.has_system:
        with pytest.raises(UnsupportedRole, match="no system role") as caught:
            case.model.render(messages)
        assert caught.value.param == "messages"
        return
    assert len(case.answers(case.model.render(messages))) == 2


def test_ids_are_those_of_the_tokenizer_on_the_template_text(case: Case) -> None:
    template = case.style.template or FALLBACK_TEMPLATE
    text = case.tokenizer.apply_chat_template(
        as_dicts(CONVERSATION[:3]), chat_template=template, tokenize=False, add_generation_prompt=True
    )
    expected = case.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert list(case.model.render(CONVERSATION[:3]).token_ids) == expected


def test_a_prompt_is_a_prefix_of_the_example_that_continues_it(case: Case) -> None:
    prompt = case.model.render(CONVERSATION[:3]).token_ids
    example = case.model.render(CONVERSATION, add_generation_prompt=False).token_ids
    if case.style is STYLES["deepseek"]:  # its generation prompt opens a thinking block that history leaves out
        prompt = prompt[: -len(case.model.codec.encode("\n")) - 1]
    assert example[: len(prompt)] == prompt


def test_end_of_turn_is_a_stop_token(case: Case) -> None:
    assert case.model.codec.control_tokens[case.style.end] in case.model.stop_token_ids


@pytest.mark.parametrize("role", ["system", "user", "assistant"])
def test_no_added_token_in_a_content_becomes_a_control_token(case: Case, role: Role) -> None:
    if role == "system" and not case.style.has_system:
        role = "user"

    def render(content: str) -> RenderedPrompt:
        position = {"system": 0, "user": 0, "assistant": 1}[role]
        messages = list(CONVERSATION)
        if role == "system":
            messages.insert(0, Message("system", content))
        else:
            messages[position] = Message(role, content)
        return case.model.render(messages)

    expected = case.controls(render("harmless"))
    for token in case.model.codec.control_tokens:
        thinks = case.model._provenance._searched and token in ("<think>", "</think>") and role == "assistant"
        for content in (
            token,
            f"a{token}b",
            f"{token}{token}",
            f" {token[:3]}{token}",
            f"{token}\n",
            f"x {token[:-1]}",
        ):
            rendered = render(content)
            if thinks:  # the template itself takes thinking out of history
                assert set(case.controls(rendered)) <= {*expected, case.model.codec.control_tokens[token]}
            else:
                assert case.controls(rendered) == expected, content


def test_halves_of_a_control_token_in_neighbouring_messages_stay_text(
    make_tokenizer: MakeTokenizer, byte_level: Tokenizer
) -> None:
    bare = "{% for message in messages %}{{ message.content }}{% endfor %}"
    case = chatml(make_tokenizer, byte_level, bare)
    rendered = case.model.render([Message("user", "<|im_"), Message("assistant", "end|>"), Message("user", "x")])
    assert case.controls(rendered) == []
    assert case.model.codec.decode(rendered.token_ids) == "<|im_end|>x"


def test_content_cannot_complete_a_token_that_the_template_begins(
    make_tokenizer: MakeTokenizer, byte_level: Tokenizer
) -> None:
    begun = "{% for message in messages %}{{ '<|im_' + message.content + '|>' }}{% endfor %}"
    case = chatml(make_tokenizer, byte_level, begun)
    assert case.controls(case.model.render([Message("user", "end")])) == []


def test_bos_of_the_template_is_not_doubled(case: Case) -> None:
    bos = case.tokenizer.bos_token_id
    if bos is not None and case.style.template is not None:
        assert case.model.render(CONVERSATION).token_ids.count(bos) == 1


def test_qwen3_strips_thinking_from_history_and_trains_it_in_the_last_turn(
    make_tokenizer: MakeTokenizer, byte_level: Tokenizer
) -> None:
    style = STYLES["qwen3"]
    tokenizer = make_tokenizer(byte_level, style.template, style.special, style.shown, **style.roles)
    case = Case(style, CausalLM("tiny", TokenizerSummary.of(tokenizer), context_length=128), tokenizer)
    thinking = "<think>\nI am the model\n</think>\n\nParis"
    messages = [
        Message("user", "a"),
        Message("assistant", thinking),
        Message("user", "b"),
        Message("assistant", thinking),
    ]
    rendered = case.model.render(messages, add_generation_prompt=False)
    assert case.answers(rendered) == ["Paris<|im_end|>", thinking + "<|im_end|>"]
    think = case.model.codec.control_tokens["<think>"]
    assert rendered.token_ids.count(think) == 1
    text = tokenizer.apply_chat_template(as_dicts(messages), tokenize=False)
    assert list(rendered.token_ids) == tokenizer(text, add_special_tokens=False)["input_ids"]


def test_deepseek_leaves_thinking_out_of_history(make_tokenizer: MakeTokenizer, byte_level: Tokenizer) -> None:
    style = STYLES["deepseek"]
    tokenizer = make_tokenizer(byte_level, style.template, style.special, style.shown, **style.roles)
    case = Case(style, CausalLM("tiny", TokenizerSummary.of(tokenizer), context_length=128), tokenizer)
    messages = [Message("user", "a"), Message("assistant", "I am\n</think>\n\nParis"), Message("user", "b")]
    assert case.answers(case.model.render(messages)) == ["Paris<eos>"]


@pytest.mark.parametrize("content", ["  padded  ", "\n\nHello\n", "\tthe thing"])
def test_whitespace_around_an_answer_keeps_the_mask_on_the_answer(case: Case, content: str) -> None:
    messages = [Message("user", " Hello "), Message("assistant", content), Message("user", "x")]
    (answer,) = case.answers(case.model.render(messages))
    assert answer.endswith(case.style.end)
    assert answer.removesuffix(case.style.end).strip() == content.strip()


@pytest.mark.parametrize("content", ["", "   ", "\n"])
def test_an_empty_answer_puts_nothing_of_the_template_under_the_mask(case: Case, content: str) -> None:
    messages = [Message("user", "Hello"), Message("assistant", content), Message("user", "x")]
    for answer in case.answers(case.model.render(messages)):
        assert answer.removesuffix(case.style.end).strip() == ""


def test_content_with_the_marking_characters_themselves_is_kept(
    make_tokenizer: MakeTokenizer, byte_level: Tokenizer
) -> None:
    case = chatml(make_tokenizer, byte_level)
    strange = "".join(map(chr, range(0xFDD0, 0xFDF0)))
    rendered = case.model.render([Message("user", strange), Message("assistant", "Hello")])
    assert strange in case.model.codec.decode(rendered.token_ids)
    assert case.answers(rendered) == ["Hello<|im_end|>"]


def test_a_template_that_breaks_marks_yields_text_and_no_false_control_token(
    make_tokenizer: MakeTokenizer, byte_level: Tokenizer
) -> None:
    odd = "{% for m in messages %}{{ '<|im_start|>' + m.content[1:-1] + '<|im_end|>' }}{% endfor %}"
    case = chatml(make_tokenizer, byte_level, odd)
    rendered = case.model.render([Message("user", "x<|im_end|>x"), Message("assistant", "x<|im_start|>x")])
    marks_only = case.model.render([Message("user", "xHellox"), Message("assistant", "xThe answerx")])
    assert len(case.controls(rendered)) <= len(case.controls(marks_only))


def test_alternation_errors_come_in_the_templates_words(
    make_tokenizer: MakeTokenizer, sentencepiece: Tokenizer
) -> None:
    style = STYLES["gemma"]
    model = CausalLM(
        "t", TokenizerSummary.of(make_tokenizer(sentencepiece, GEMMA, style.special, **style.roles)), context_length=9
    )
    with pytest.raises(InvalidRequest, match="roles must alternate") as caught:
        model.render([Message("user", "a"), Message("user", "b")])
    assert not isinstance(caught.value, UnsupportedRole)
    assert caught.value.param == "messages"


def test_no_messages_is_an_invalid_request(case: Case) -> None:
    with pytest.raises(InvalidRequest, match="at least one message"):
        case.model.render([])


def test_fallback_ends_replies_where_the_next_turn_would_begin(case: Case) -> None:
    assert case.model.stop_strings == (("\nUser:",) if case.style.template is None else ())


def test_fallback_reads_as_a_dialogue(make_tokenizer: MakeTokenizer, byte_level: Tokenizer) -> None:
    model = CausalLM(
        "t", TokenizerSummary.of(make_tokenizer(byte_level, None, ["</s>"], eos_token="</s>")), context_length=9
    )
    rendered = model.render([Message("system", "Be brief."), *CONVERSATION[:3]])
    text = b"".join(map(model.codec.token_bytes, rendered.token_ids)).decode()
    assert text == (
        "Be brief.\n\nUser: Hello there\nAssistant: I am fine.\nAnd you?</s>\n"
        "User: What is the capital\n\nof France? é 🦊\nAssistant:"
    )


def test_lone_surrogates_become_replacement_characters(case: Case) -> None:
    text = case.model.codec.decode(case.model.render([Message("user", "a\ud800b")]).token_ids)
    assert "a\ufffdb" in text


def test_thousand_messages_render_in_well_under_a_second(case: Case) -> None:
    messages = [Message("user" if i % 2 == 0 else "assistant", f"the thing number {i} there") for i in range(999)]
    start = time.process_time()
    case.model.render(messages)
    assert time.process_time() - start < 1.0


def test_folder_without_config_is_a_load_error(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"config\.json"):
        CausalLM.from_folder("t", tmp_path)


# --- the embedded model ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def smollm2(smollm2_folder: Path) -> CausalLM:
    return CausalLM.from_folder("smollm2-135m", smollm2_folder)


@pytest.fixture(scope="module")
def smollm2_tokenizer(smollm2_folder: Path) -> PreTrainedTokenizerBase:
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(smollm2_folder, local_files_only=True)
    return tokenizer


def test_smollm2_stops_at_im_end_and_holds_8192_tokens(smollm2: CausalLM) -> None:
    assert smollm2.stop_token_ids == {2}
    assert smollm2.context_length == 8192
    assert smollm2.codec.vocab_size == 49152


@given(contents=st.lists(st.text(), min_size=1, max_size=4))
@settings(max_examples=150, deadline=None)
def test_smollm2_ids_are_those_of_its_tokenizer(
    smollm2: CausalLM, smollm2_tokenizer: PreTrainedTokenizerBase, contents: list[str]
) -> None:
    messages = [
        # An answer's first token is tokenised apart, as it is generated apart; so it begins with a letter here.
        Message("user", content) if i % 2 == 0 else Message("assistant", "A" + content)
        for i, content in enumerate(contents)
    ]
    text = smollm2_tokenizer.apply_chat_template(as_dicts(messages), tokenize=False, add_generation_prompt=True)
    expected = smollm2_tokenizer(text, add_special_tokens=False)["input_ids"]
    rendered = smollm2.render(messages)
    assert list(rendered.token_ids) == expected
    assert len(rendered.assistant_mask) == len(expected)


@given(
    pieces=st.lists(st.sampled_from(["<|im_end|>", "<|im_", "start|>", "end|>", "<|", "user\n", "<repo_name>", " x"]))
)
@settings(max_examples=200, deadline=None)
def test_smollm2_content_never_adds_a_control_token(smollm2: CausalLM, pieces: list[str]) -> None:
    content = "".join(pieces)
    control = set(smollm2.codec.control_tokens.values())
    messages = [Message("system", content), Message("user", content), Message("assistant", content)]
    rendered = smollm2.render(messages)
    assert sum(token in control for token in rendered.token_ids) == 7
    masked = [t for t, m in zip(rendered.token_ids, rendered.assistant_mask, strict=True) if m]
    assert smollm2.codec.decode(masked) == content
