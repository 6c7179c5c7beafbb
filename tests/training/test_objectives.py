"""Losses against the same numbers worked out by hand."""

import math

import pytest
import torch
from torch.nn.functional import log_softmax

from mini_claude.training.examples import TokenizedExample, TokenizedPreference
from mini_claude.training.flat_row import FlatRow, flat_rows
from mini_claude.training.objectives import DirectPreferenceOptimization, Model, SupervisedFineTuning

from .tiny_training import adapted, flat_model, tokenized

PAIRS = [
    TokenizedPreference(tokenized("who? ", "a fox"), tokenized("who? ", "nobody")),
    TokenizedPreference(tokenized("what? ", "a stone"), tokenized("what? ", "no")),
]


def logprob(model: Model, text: TokenizedExample) -> float:
    """Of the supervised tokens together, from a row that holds nothing else, over all logits."""
    everything = TokenizedExample(text.token_ids, (False, *(True,) * (len(text.token_ids) - 1)), row=1)
    row = FlatRow()
    row.add(everything)
    from mini_claude.training.attention import forward

    logprobs = log_softmax(forward(model, row), dim=1)
    targets = range(1, len(text.token_ids))
    return sum(logprobs[i - 1, text.token_ids[i]].item() for i in targets if text.supervised[i])


def test_sft_is_the_negative_log_likelihood_of_supervised_tokens() -> None:
    model = flat_model()
    texts = [pair.chosen for pair in PAIRS]
    (row,) = flat_rows(texts, max_tokens=100)
    objective = SupervisedFineTuning()
    assert objective.loss(model, row).total.item() == pytest.approx(-sum(logprob(model, text) for text in texts))
    assert [objective.weight(text) for text in texts] == [5, 7]


def test_dpo_is_the_value_of_its_formula() -> None:
    """Rafailov et al. 2023, equation 7, with plain floats."""
    beta = 0.3
    reference, policy = flat_model(), adapted(flat_model())
    (row,) = flat_rows(PAIRS, max_tokens=100)
    loss = DirectPreferenceOptimization(beta).loss(policy, row)

    margins = []
    for pair in PAIRS:
        ratios = [logprob(policy, text) - logprob(reference, text) for text in (pair.chosen, pair.rejected)]
        margins.append(beta * (ratios[0] - ratios[1]))
    assert max(map(abs, margins)) > 0.1
    assert loss.total.item() == pytest.approx(sum(math.log(1 + math.exp(-m)) for m in margins), rel=1e-4)
    assert loss.sums["margin"] == pytest.approx(sum(margins), rel=1e-4)
    assert loss.sums["accuracy"] == sum(m > 0 for m in margins)


def test_dpo_begins_at_log_2_because_model_and_reference_are_one() -> None:
    policy = adapted(flat_model())
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.zero_()
    (row,) = flat_rows(PAIRS, max_tokens=100)
    assert DirectPreferenceOptimization(0.1).loss(policy, row).total.item() == pytest.approx(2 * math.log(2))


def test_dpo_gives_gradients_to_the_adapter_and_leaves_it_switched_on() -> None:
    policy = adapted(flat_model())
    policy.train()
    (row,) = flat_rows(PAIRS, max_tokens=100)
    objective = DirectPreferenceOptimization(0.1)
    before = objective.loss(policy, row).total
    before.backward()  # type: ignore[no-untyped-call]
    gradients = [p.grad for name, p in policy.named_parameters() if "lora_" in name]
    assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients)
    assert policy.training
    assert objective.loss(policy, row).total.item() == before.item()
