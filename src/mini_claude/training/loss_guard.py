"""A run whose numbers have stopped to mean anything ends there, with the step and the rows that show it."""

import math
from collections.abc import Mapping, Sequence

from mini_claude.errors import InvalidRequest


def check_losses(step: int, losses: Sequence[tuple[float, Sequence[int]]]) -> None:
    """`losses` are the sums of rows, each with the numbers of the data's rows in it; `step` is counted from 1.

    Raises `InvalidRequest`, code "loss_not_finite" or "loss_zero".
    """
    for loss, rows in losses:
        if not math.isfinite(loss):
            raise InvalidRequest(
                f"The loss of step {step} is {loss}; the data's rows in it are {_listed(rows)}. Lower learning_rate, "
                "or look for a broken row among them.",
                code="loss_not_finite",
                param="learning_rate",
            )
    if losses and all(loss == 0.0 for loss, _ in losses):
        rows = [row for _, part in losses for row in part]
        raise InvalidRequest(
            f"The loss of step {step} is exactly 0, so nothing is learned; the data's rows in it are {_listed(rows)}. "
            "Train for fewer steps, or with other data.",
            code="loss_zero",
        )


def check_gradients(step: int, norm: float, rows: Sequence[int]) -> None:
    """Raises `InvalidRequest`, code "loss_not_finite": a step with such gradients would ruin every weight."""
    if not math.isfinite(norm):
        raise InvalidRequest(
            f"The gradients of step {step} are not finite (their norm is {norm}); the data's rows in it are "
            f"{_listed(rows)}. Lower learning_rate.",
            code="loss_not_finite",
            param="learning_rate",
        )


def check_evaluation(step: int, metrics: Mapping[str, float]) -> None:
    """Raises `InvalidRequest`, code "loss_not_finite"."""
    if not math.isfinite(metrics["loss"]):
        raise InvalidRequest(
            f"After step {step} the loss on the held-out examples is {metrics['loss']}. Lower learning_rate.",
            code="loss_not_finite",
            param="learning_rate",
        )


def _listed(rows: Sequence[int], most: int = 20) -> str:
    ordered = sorted(set(rows))
    text = ", ".join(map(str, ordered[:most]))
    return text if len(ordered) <= most else f"{text} and {len(ordered) - most} more"
