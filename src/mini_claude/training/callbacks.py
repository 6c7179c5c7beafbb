"""Observers of a run: told what happened, and through `Control` they can ask for a save or an end.

They run in the main process only, in the order in which they were given. An exception of an observer ends the run.
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from mini_claude.errors import StorageError
from mini_claude.training.arguments import TrainingArguments
from mini_claude.training.checkpoint import DamagedCheckpoint
from mini_claude.training.complete_folder import complete_file
from mini_claude.training.save_interval import SaveInterval
from mini_claude.training.training_state import Evaluation, TrainingState
from mini_claude.utils.files import is_full

StopReason = Literal["cancelled", "early_stopping", "time_limit"]


@dataclass(slots=True)
class Control:
    """What observers may ask of the run; it answers after the step that they were told of."""

    stop_reason: StopReason | None = None
    save: bool = False


@dataclass(frozen=True, slots=True)
class RunStarted:
    """`resumed_from` is the step of the checkpoint that was loaded; `damaged` were newer and could not be used."""

    num_steps: int
    num_train_examples: int
    num_eval_examples: int
    num_trainable_parameters: int
    state: TrainingState
    resumed_from: int | None
    damaged: tuple[DamagedCheckpoint, ...]


@dataclass(frozen=True, slots=True)
class StepDone:
    """One optimizer step. `loss` is its mean by weight, in nats; `grad_norm` is before clipping."""

    step: int  # counted from 1
    num_steps: int
    epoch: float
    loss: float
    learning_rate: float
    grad_norm: float
    num_tokens: int  # of the step's examples
    weight: int  # supervised tokens (SFT) or pairs (DPO)
    tokens_seen: int
    seconds: float
    seconds_left: float  # of steps; evaluations and saves come on top
    metrics: dict[str, float]  # what the objective adds, means by weight

    @property
    def tokens_per_second(self) -> float:
        """Of this step."""
        return self.num_tokens / self.seconds


@dataclass(frozen=True, slots=True)
class CheckpointSaved:
    """`seconds` is what saving took."""

    step: int
    folder: Path
    seconds: float


class Callback:
    """An observer that looks away; override what is of interest."""

    def on_start(self, started: RunStarted, control: Control) -> None:
        """Before the first step of this process, also of a resumed run."""

    def on_step(self, done: StepDone, control: Control) -> None:
        """After each optimizer step."""

    def on_evaluate(self, state: TrainingState, control: Control) -> None:
        """After each evaluation, the last one in `state.evaluations`, and after the `on_step` of the same step."""

    def on_checkpoint(self, saved: CheckpointSaved) -> None:
        """After a checkpoint is complete."""

    def on_end(self, state: TrainingState, stop_reason: StopReason | None) -> None:
        """After the last step; not when the run fails."""


class ProgressCallback(Callback):
    """Passes every `logging_steps`-th step on, and the last."""

    def __init__(self, report: Callable[[StepDone], None], logging_steps: int = 1) -> None:
        self._report = report
        self._logging_steps = logging_steps

    def on_step(self, done: StepDone, control: Control) -> None:
        """Report it, if it is its turn."""
        if done.step % self._logging_steps == 0 or done.step == done.num_steps:
            self._report(done)


class CheckpointCallback(Callback):
    """Asks for a save when one is due."""

    def __init__(self, arguments: TrainingArguments, clock: Callable[[], float] = time.monotonic) -> None:
        self._arguments = arguments
        self._clock = clock
        self._interval = SaveInterval(arguments, clock())

    def on_start(self, started: RunStarted, control: Control) -> None:
        """Time begins now, not when the model was loaded."""
        self._interval = SaveInterval(self._arguments, self._clock())

    def on_step(self, done: StepDone, control: Control) -> None:
        """Steps or clock decide."""
        if self._interval.is_due(done.step, self._clock()):
            control.save = True

    def on_evaluate(self, state: TrainingState, control: Control) -> None:
        """Early stopping ends with the best weights, so they have to be there."""
        if self._arguments.early_stopping_patience and state.best is state.evaluations[-1]:
            control.save = True

    def on_checkpoint(self, saved: CheckpointSaved) -> None:
        """The next interval follows from what this one cost."""
        self._interval.saved(saved.seconds, self._clock())


class EarlyStoppingCallback(Callback):
    """Ends the run when `patience` evaluations in a row have brought no loss below the best one."""

    def __init__(self, patience: int) -> None:
        self._patience = patience

    def on_start(self, started: RunStarted, control: Control) -> None:
        """A resumed run may have been about to stop."""
        self._decide(started.state, control)

    def on_evaluate(self, state: TrainingState, control: Control) -> None:
        """Count from the best evaluation on."""
        self._decide(state, control)

    def _decide(self, state: TrainingState, control: Control) -> None:
        if state.best is None:
            return
        if len(state.evaluations) - 1 - state.evaluations.index(state.best) >= self._patience:
            control.stop_reason = "early_stopping"


class TimeLimitCallback(Callback):
    """Ends the run after the step that brings the time of all its steps, also of earlier processes, to `seconds`."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._spent = 0.0

    def on_start(self, started: RunStarted, control: Control) -> None:
        """A resumed run goes on counting."""
        self._spent = started.state.seconds
        self._decide(started.state.step, started.num_steps, control)

    def on_step(self, done: StepDone, control: Control) -> None:
        """Count."""
        self._spent += done.seconds
        self._decide(done.step, done.num_steps, control)

    def _decide(self, step: int, num_steps: int, control: Control) -> None:
        if self._spent >= self._seconds and step < num_steps and control.stop_reason is None:
            control.stop_reason = "time_limit"


class CancelCallback(Callback):
    """Ends the run after the step in which `is_cancelled` turns true."""

    def __init__(self, is_cancelled: Callable[[], bool]) -> None:
        self._is_cancelled = is_cancelled

    def on_start(self, started: RunStarted, control: Control) -> None:
        """It may be cancelled while the model was loaded."""
        self._decide(control)

    def on_step(self, done: StepDone, control: Control) -> None:
        """Ask."""
        self._decide(control)

    def _decide(self, control: Control) -> None:
        if self._is_cancelled():
            control.stop_reason = "cancelled"


class MetricsFileCallback(Callback):
    """Writes steps and evaluations as JSON lines: {"event": "step", "step": 1, "loss": ...}.

    A resumed run takes back the lines after its checkpoint: it makes them again.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def on_start(self, started: RunStarted, control: Control) -> None:
        """Keep the lines up to where the run is."""
        kept = [line for line in self._lines() if _step(line) <= started.state.step]
        if started.state.step == 0 and not started.state.evaluations:
            kept = []
        with complete_file(self._path) as part:
            part.write_text("".join(line + "\n" for line in kept))

    def on_step(self, done: StepDone, control: Control) -> None:
        """One line."""
        self._append({"event": "step", **asdict(done), "tokens_per_second": done.tokens_per_second})

    def on_evaluate(self, state: TrainingState, control: Control) -> None:
        """One line."""
        evaluation: Evaluation = state.evaluations[-1]
        self._append({"event": "evaluation", "step": evaluation.step, **evaluation.metrics})

    def _append(self, record: dict[str, object]) -> None:
        try:
            with self._path.open("a") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:
            code = "disk_full" if is_full(error) else None
            raise StorageError(f"{self._path} cannot be written: {error}.", code=code) from error

    def _lines(self) -> Sequence[str]:
        return self._path.read_text().splitlines() if self._path.exists() else ()


def _step(line: str) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):  # the end of a file whose writer was killed
        return 1 << 62
