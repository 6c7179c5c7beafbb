"""The parity certificate: the same held-out tokens, the same probabilities, wherever the tuned model runs.

The trainer's form, the base with PEFT's adapter, is the reference. Every other form (the serving engine, the merged
export, the GGUF exports) has to give the same log-probabilities within its tolerance, and the base itself where the
adapter is left out. And the adapter has to do something: forms that agree because nothing was trained prove nothing.

Knows numbers only: no torch, no engine, no file format.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from mini_claude.errors import InvalidRequest, MiniClaudeError, UnsupportedExport

LogProbs = NDArray[np.float32]  # [positions, vocabulary], natural logarithms; NaN where a form does not tell
StepState = Literal["passed", "failed", "skipped"]

MAX_SEQUENCES: Final = 6
MAX_TOKENS: Final = 96  # of a sequence
MAX_POSITIONS: Final = 12  # of a sequence that are compared, its last ones
NUM_TOP: Final = 64  # most probable tokens over which an adapter's effect is measured
MIN_EFFECT: Final = 0.01  # 10 times the tolerance between the trainer and the engine


@dataclass(frozen=True, slots=True)
class Window:
    """Tokens to read; what follows each of `token_ids[first:]` is compared."""

    token_ids: tuple[int, ...]
    first: int


@dataclass(frozen=True, slots=True)
class Readings:
    """What a form computes for each window; `base` without the adapter, None where the form has no such thing."""

    tuned: Sequence[LogProbs]
    base: Sequence[LogProbs] | None


@dataclass(frozen=True, slots=True)
class Form:
    """A way to run the tuned model.

    `tolerance` bounds the largest difference of a log-probability. A form that rounds, a quantised GGUF, has a
    `noise_multiple` instead: its mean difference may be that many times the one between its base and the trainer's.
    """

    name: str
    tolerance: float
    read: Callable[[Sequence[Window]], Readings]
    noise_multiple: float | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """One form compared with the trainer's. Differences are of log-probabilities, None where nothing was measured."""

    name: str
    state: StepState
    tolerance: float
    reason: str | None = None
    max_difference: float | None = None
    mean_difference: float | None = None
    base_max_difference: float | None = None
    base_mean_difference: float | None = None
    top1_agreement: float | None = None  # share of positions with the same most probable token
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Certificate:
    """What was measured and what follows from it.

    Effects are how far the adapter moves the trainer's log-probabilities, None where these are not finite.
    """

    passed: bool
    reason: str
    num_sequences: int
    num_positions: int
    max_effect: float | None
    mean_effect: float | None
    min_effect: float
    steps: tuple[Step, ...]
    identity: Mapping[str, str] = field(default_factory=dict)  # hashes of base and adapter
    environment: Mapping[str, str] = field(default_factory=dict)  # versions by package
    seconds: float = 0.0


def bounded(sequences: Sequence[Sequence[int]]) -> tuple[tuple[int, ...], ...]:
    """As much of the sequences as a certificate looks at."""
    return tuple(tuple(sequence[:MAX_TOKENS]) for sequence in sequences if sequence)[:MAX_SEQUENCES]


def windows_of(sequences: Sequence[Sequence[int]]) -> tuple[Window, ...]:
    """A bounded part of the held-out sequences. Raises `InvalidRequest` where there is none."""
    cut = bounded(sequences)
    if not cut:
        raise InvalidRequest("There are no held-out tokens to compare the forms of the model with.")
    return tuple(Window(token_ids, max(0, len(token_ids) - MAX_POSITIONS)) for token_ids in cut)


def certify(
    trainer: Form,
    forms: Sequence[Form],
    windows: Sequence[Window],
    *,
    identity: Mapping[str, str],
    environment: Mapping[str, str],
) -> Certificate:
    """Compare every form with the trainer's.

    A form that raises `UnsupportedExport` skips its step, and any other of the project's errors fails it.
    """
    start = time.monotonic()
    reference = trainer.read(windows)
    assert reference.base is not None
    top = [np.argpartition(-rows, min(NUM_TOP, rows.shape[1]) - 1)[:, :NUM_TOP] for rows in reference.tuned]
    effects = np.concatenate(
        [
            np.abs(np.take_along_axis(tuned - base, tokens, axis=1))
            for tuned, base, tokens in zip(reference.tuned, reference.base, top, strict=True)
        ],
        axis=None,
    )
    max_effect, mean_effect = float(effects.max()), float(effects.mean())
    steps = [_step(form, windows, reference, (max_effect, mean_effect)) for form in forms]
    reason = _verdict(max_effect, steps)
    return Certificate(
        passed=reason is None,
        reason=reason or "All forms agree, and the adapter has an effect.",
        num_sequences=len(windows),
        num_positions=sum(len(rows) for rows in reference.tuned),
        max_effect=_finite(max_effect),
        mean_effect=_finite(mean_effect),
        min_effect=MIN_EFFECT,
        steps=tuple(steps),
        identity=identity,
        environment=environment,
        seconds=time.monotonic() - start,
    )


def _verdict(max_effect: float, steps: Sequence[Step]) -> str | None:
    """Why the certificate is refused, or None."""
    if not math.isfinite(max_effect):
        return "The tuned model's probabilities are not finite; the training went wrong."
    if max_effect <= MIN_EFFECT:
        return (
            f"The adapter has no effect: it moves no log-probability by more than {max_effect:.2g}, and anything up to "
            f"{MIN_EFFECT:g} may be rounding. Train longer, or with a higher learning rate."
        )
    failed = [f"{step.name}: {step.reason}" for step in steps if step.state == "failed"]
    return " ".join(failed) or None


def _step(form: Form, windows: Sequence[Window], reference: Readings, effect: tuple[float, float]) -> Step:
    start = time.monotonic()
    try:
        readings = form.read(windows)
    except MiniClaudeError as error:
        state: StepState = "skipped" if isinstance(error, UnsupportedExport) else "failed"
        return Step(form.name, state, form.tolerance, error.message, seconds=time.monotonic() - start)
    assert reference.base is not None
    tuned = _Differences.between(readings.tuned, reference.tuned)
    base = None if readings.base is None else _Differences.between(readings.base, reference.base)
    state, reason, tolerance = _judge(form, tuned, base, *effect)
    return Step(
        name=form.name,
        state=state,
        tolerance=tolerance,
        reason=reason,
        max_difference=_finite(tuned.largest),
        mean_difference=_finite(tuned.mean),
        base_max_difference=None if base is None else _finite(base.largest),
        base_mean_difference=None if base is None else _finite(base.mean),
        top1_agreement=tuned.top1_agreement,
        seconds=time.monotonic() - start,
    )


def _judge(
    form: Form, tuned: "_Differences", base: "_Differences | None", max_effect: float, mean_effect: float
) -> tuple[StepState, str | None, float]:
    """State, reason and the tolerance that was applied."""
    if form.noise_multiple is not None:
        assert base is not None
        limit = max(form.tolerance, form.noise_multiple * base.mean)
        if not math.isfinite(tuned.mean + base.mean):
            return "failed", "Its probabilities are not finite.", limit
        if mean_effect <= limit:
            return "skipped", f"The adapter moves less ({mean_effect:.2g}) than this file rounds ({limit:.2g}).", limit
        if tuned.mean > limit:
            return "failed", f"The mean difference is {tuned.mean:.2g} and may be {limit:.2g}.", limit
        return "passed", None, limit
    for what, differences in (("The largest difference", tuned), ("Without the adapter the largest difference", base)):
        if differences is not None and not differences.largest <= form.tolerance:  # also when it is NaN
            reason = f"{what} is {differences.largest:.2g} and may be {form.tolerance:g}."
            return "failed", reason, form.tolerance
    if max_effect <= 2 * form.tolerance:
        reason = f"The adapter moves less ({max_effect:.2g}) than would show here ({2 * form.tolerance:g})."
        return "skipped", reason, form.tolerance
    return "passed", None, form.tolerance


@dataclass(frozen=True, slots=True)
class _Differences:
    largest: float
    mean: float
    top1_agreement: float

    @classmethod
    def between(cls, form: Sequence[LogProbs], reference: Sequence[LogProbs]) -> "_Differences":
        pairs = [(rows, _cut(wanted, rows.shape[1])) for rows, wanted in zip(form, reference, strict=True)]
        differences = np.concatenate([_difference(*pair) for pair in pairs], axis=None)
        same = np.concatenate([_best(rows) == wanted.argmax(axis=1) for rows, wanted in pairs])
        return cls(float(differences.max()), float(differences.mean()), float(same.mean()))


def _difference(rows: LogProbs, wanted: LogProbs) -> NDArray[np.float32]:
    """|rows - wanted| of the tokens that the form tells of.

    The others are less probable for it than those, so `wanted` may not be above the least of these: by how much it is
    counts as a difference too.
    """
    told = ~np.isnan(rows)
    if not told.any(axis=1).all():  # a position of which nothing is told
        return np.full(1, np.nan, np.float32)
    least = np.where(told, rows, np.inf).min(axis=1, keepdims=True)
    excess = np.where(told, 0, np.maximum(wanted - least, 0)).max(axis=1)
    return np.concatenate([np.abs(rows - wanted)[told], excess[excess > 0]])


def _best(rows: LogProbs) -> NDArray[np.intp]:
    best: NDArray[np.intp] = np.where(np.isnan(rows), -np.inf, rows).argmax(axis=1)
    return best


def _cut(log_probs: LogProbs, vocab_size: int) -> LogProbs:
    """As if the tokens after the first `vocab_size`, which fill some models' matrices up, did not exist."""
    if log_probs.shape[1] == vocab_size:
        return log_probs
    kept = log_probs[:, :vocab_size]
    normalizer: LogProbs = np.logaddexp.reduce(kept, axis=1, keepdims=True)
    return kept - normalizer


def _finite(number: float) -> float | None:
    """JSON knows neither NaN nor infinity."""
    return number if math.isfinite(number) else None
