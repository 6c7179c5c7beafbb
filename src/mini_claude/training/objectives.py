"""What training makes smaller. A loss is a sum over a row; the trainer divides by the weight of the whole step.

supervised fine-tuning   -log p(token), summed over supervised tokens; a step weighs as much as it has of them
DPO                      -log sigmoid(beta * margin), summed over pairs; a step weighs as much as it has pairs
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

import torch
from peft import PeftModel
from torch.nn.functional import logsigmoid
from transformers import PreTrainedModel

from mini_claude.training.arguments import TrainingArguments
from mini_claude.training.attention import forward
from mini_claude.training.examples import TokenizedExample, TokenizedPreference
from mini_claude.training.flat_row import FlatRow

Model: TypeAlias = PreTrainedModel | PeftModel


@dataclass(frozen=True, slots=True)
class RowLoss:
    """`total` is a scalar with gradients; `sums` are other figures, summed over what the row weighs."""

    total: torch.Tensor
    sums: Mapping[str, float] = field(default_factory=dict)


class Objective(Protocol):
    """A loss over rows."""

    def weight(self, example: TokenizedExample | TokenizedPreference) -> int:
        """How much the example counts in a mean."""

    def loss(self, model: Model, row: FlatRow) -> RowLoss:
        """The row's loss, summed by weight."""


class SupervisedFineTuning:
    """The negative log-likelihood of the supervised tokens."""

    def weight(self, example: TokenizedExample | TokenizedPreference) -> int:
        """Its supervised tokens."""
        assert isinstance(example, TokenizedExample)
        return sum(example.supervised)

    def loss(self, model: Model, row: FlatRow) -> RowLoss:
        """In nats."""
        return RowLoss(-_target_logprobs(model, row).sum())


class DirectPreferenceOptimization:
    """Chosen answers become more probable against rejected ones (Rafailov et al. 2023, equation 7).

    The margin of a pair is how much more the model prefers the chosen answer than the reference does:
    log pi(chosen) / pi_ref(chosen) - log pi(rejected) / pi_ref(rejected). The reference is the same model with its
    adapter switched off, so it takes no memory of its own.
    """

    def __init__(self, beta: float) -> None:
        self._beta = beta

    def weight(self, example: TokenizedExample | TokenizedPreference) -> int:
        """A pair is a pair."""
        del example
        return 1

    def loss(self, model: Model, row: FlatRow) -> RowLoss:
        """Also sums `margin` (in nats, times beta) and `accuracy`, 1 where the margin is above 0."""
        assert isinstance(model, PeftModel)
        # The reference first: switching adapters off and on again must not come between a forward and its backward.
        reference = self._reference(model, row)
        chosen, rejected = (_answer_logprobs(model, row) - reference).unbind(dim=1)
        margin = self._beta * (chosen - rejected)
        sums = {"margin": margin.detach().sum().item(), "accuracy": float((margin.detach() > 0).sum().item())}
        return RowLoss(-logsigmoid(margin).sum(), sums)

    @staticmethod
    @torch.no_grad()
    def _reference(model: PeftModel, row: FlatRow) -> torch.Tensor:
        was_training = model.training
        model.eval()  # what to compare with must not be noisy
        with model.disable_adapter():
            logprobs = _answer_logprobs(model, row)
        model.train(was_training)
        return logprobs


class _TargetLogprobs(torch.autograd.Function):
    """log softmax(logits)[i, targets[i]], whose gradient is that of cross-entropy: one at the target minus softmax.

    The logits of a row are its largest tensor. Here there are two of their size at the most, and one while the rest of
    the model waits for its gradient; torch's own cross-entropy makes three.
    """

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        logprobs = torch.log_softmax(logits, dim=1)
        chosen = logprobs.gather(1, targets[:, None])[:, 0]
        ctx.save_for_backward(logprobs.exp_(), targets)
        return chosen

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        (grad,) = grads
        softmax, targets = ctx.saved_tensors
        grad_logits: torch.Tensor = softmax.mul_(-grad[:, None])  # in place: a second pass over it is an error
        return grad_logits.scatter_add_(1, targets[:, None], grad[:, None]), None


def _target_logprobs(model: Model, row: FlatRow) -> torch.Tensor:
    """Natural-log probability of each of the row's targets, [targets]."""
    logits = forward(model, row)
    chosen: torch.Tensor = _TargetLogprobs.apply(  # type: ignore[no-untyped-call]
        logits, torch.tensor(row.targets, device=logits.device)
    )
    return chosen


def _answer_logprobs(model: Model, row: FlatRow) -> torch.Tensor:
    """Natural-log probability of each answer as a whole, [pairs, 2]: chosen, rejected."""
    logprobs = _target_logprobs(model, row)
    owners = torch.tensor(row.owners, device=logprobs.device)
    return logprobs.new_zeros(row.num_texts).index_add(0, owners, logprobs).view(-1, 2)


def create_objective(arguments: TrainingArguments) -> Objective:
    """The one that `arguments.objective` names."""
    return DirectPreferenceOptimization(arguments.dpo_beta) if arguments.objective == "dpo" else SupervisedFineTuning()
