"""One row without padding, shared beginnings once: the same numbers as each text alone."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from mini_claude.errors import ModelLoadError
from mini_claude.training.attention import AttentionRow, forward, use_flat_rows
from mini_claude.training.examples import TokenizedExample, TokenizedPreference
from mini_claude.training.flat_row import FlatRow, flat_rows

from ..engine.conftest import CONFIGS, build
from .tiny_training import flat_model, tokenized

TEXTS = [
    tokenized("be brief. who? ", "a fox in the river"),
    tokenized("be brief. who? ", "a dog"),
    tokenized("be brief. what? ", "stones"),
    tokenized("x", "y"),
]


def row_of(texts: list[TokenizedExample]) -> FlatRow:
    row = FlatRow()
    for text in texts:
        row.add(text)
    return row


def test_a_shared_beginning_is_there_once() -> None:
    row = row_of([tokenized("ab", "cd"), tokenized("ab", "ce"), tokenized("b", "c")])
    assert bytes(row.token_ids) == b"abcb"  # d, e and the last c are only predicted
    assert row.positions == [0, 1, 2, 0]
    assert row.parents == [-1, 0, 1, -1]
    assert row.predictors == [1, 2, 1, 2, 3]
    assert bytes(row.targets) == b"cdcec"
    assert row.owners == [0, 0, 1, 1, 2]
    assert row.num_data_tokens == 4 + 4 + 2


def test_tokens_after_the_last_supervised_one_are_not_computed() -> None:
    text = TokenizedExample((1, 2, 3, 4, 5), (False, False, True, False, False), row=1)
    row = row_of([text])
    assert row.token_ids == [1, 2]
    assert row.targets == [3]


def test_rows_are_filled_up_to_the_limit_in_order() -> None:
    examples = [tokenized("abcd", "e", row=i) for i in range(3)] + [tokenized("wxyz", "e", row=9)]
    assert [row.file_rows for row in flat_rows(examples, max_tokens=4)] == [[0, 1, 2], [9]]
    assert [row.file_rows for row in flat_rows(examples, max_tokens=8)] == [[0, 1, 2, 9]]


def test_an_example_longer_than_the_limit_gets_a_row_of_its_own() -> None:
    examples = [tokenized("a", "b", row=1), tokenized("c" * 50, "d", row=2), tokenized("e", "f", row=3)]
    assert [row.file_rows for row in flat_rows(examples, max_tokens=10)] == [[1], [2], [3]]


def test_both_answers_of_a_preference_are_in_one_row_and_share_the_prompt() -> None:
    pair = TokenizedPreference(tokenized("who? ", "fox"), tokenized("who? ", "dog"))
    (row,) = flat_rows([pair], max_tokens=1)
    assert bytes(row.token_ids) == b"who? fodo"
    assert row.owners == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize("architecture", CONFIGS)
def test_each_text_gets_the_loss_and_the_gradients_it_gets_alone(architecture: str) -> None:
    model = build(architecture)
    model.set_attn_implementation("eager")
    embeddings = model.get_input_embeddings().weight
    alone = torch.zeros(())
    for text in TEXTS:
        logits = model(input_ids=torch.tensor([text.token_ids]), use_cache=False).logits[0, :-1]
        seen = torch.tensor(text.supervised[1:])
        alone = alone + cross_entropy(logits[seen], torch.tensor(text.token_ids[1:])[seen], reduction="sum")
    (expected,) = torch.autograd.grad(alone, embeddings)

    use_flat_rows(model)
    row = row_of(TEXTS)
    together = cross_entropy(forward(model, row), torch.tensor(row.targets), reduction="sum")
    (actual,) = torch.autograd.grad(together, embeddings)
    assert torch.allclose(together, alone, rtol=1e-5)
    assert torch.allclose(actual, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


def test_a_single_text_needs_no_mask_and_a_window_shorter_than_it_does() -> None:
    row = row_of([tokenized("be brief ", "now")])
    attention = AttentionRow(row, torch.device("cpu"))
    assert attention.mask(None, torch.float32) is None
    assert attention.mask(100, torch.float32) is None
    mask = attention.mask(3, torch.float32)
    assert mask is not None
    assert (mask[10] == 0).nonzero().flatten().tolist() == [8, 9, 10]


def test_gradient_checkpointing_changes_nothing() -> None:
    model = flat_model()
    embeddings = model.get_input_embeddings().weight.requires_grad_()
    row = row_of(TEXTS)

    def gradient() -> torch.Tensor:
        result: torch.Tensor = torch.autograd.grad(forward(model, row).logsumexp(dim=1).sum(), embeddings)[0]
        return result

    model.train()
    expected = gradient()
    model.activation_checkpointing_enable()
    assert torch.equal(gradient(), expected)


def test_a_model_that_keeps_state_outside_of_attention_is_refused() -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model("bloom", vocab_size=64, hidden_size=32, n_layer=1, n_head=2)
    with pytest.raises(ModelLoadError, match="cannot be trained here"):
        use_flat_rows(AutoModelForCausalLM.from_config(config).eval())
