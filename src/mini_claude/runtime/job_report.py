"""What a trainer tells the database about its run, and what it hears from there: that it was cancelled."""

import time
from typing import Any, Final

from mini_claude.data.jobs import JobRepository
from mini_claude.runtime.patience import patiently
from mini_claude.training.callbacks import Callback, CheckpointSaved, Control, RunStarted, StepDone
from mini_claude.training.training_state import TrainingState

EVENT_SECONDS: Final = 0.5
MAX_PROGRESS_EVENTS: Final = 1000  # about; a long run reports less often


class JobReport(Callback):
    """Stores events under the trainer's token, and waits while the database is away: so does the training.

    Raises `TrainerOutdated` once the token is another trainer's, and `StorageUnavailable` when the wait was too long.
    """

    def __init__(self, jobs: JobRepository, job_id: str, token: str) -> None:
        self._jobs = jobs
        self._job_id = job_id
        self._token = token
        self._started = self._last = time.monotonic()

    def tell(self, kind: str, **data: Any) -> bool:
        """Store one event; returns whether the job is to be cancelled."""
        return patiently(self._jobs.append, self._job_id, self._token, kind, data)

    def on_start(self, started: RunStarted, control: Control) -> None:
        """How large the run is, and where it goes on."""
        for damaged in started.damaged:
            self.tell("log", message=f"A checkpoint could not be used: {damaged}")
        if started.resumed_from is not None:
            self.tell("log", message=f"Going on from the checkpoint of step {started.resumed_from}.")
        cancelled = self.tell(
            "started",
            num_steps=started.num_steps,
            num_train_examples=started.num_train_examples,
            num_eval_examples=started.num_eval_examples,
            num_trainable_parameters=started.num_trainable_parameters,
        )
        if cancelled:
            control.stop_reason = "cancelled"

    def on_step(self, done: StepDone, control: Control) -> None:
        """Now and then: a row for each of a million steps would help nobody."""
        now = time.monotonic()
        interval = max(EVENT_SECONDS, (now - self._started) / MAX_PROGRESS_EVENTS)
        if done.step < done.num_steps and now - self._last < interval:
            return
        self._last = now
        cancelled = self.tell(
            "progress",
            step=done.step,
            num_steps=done.num_steps,
            epoch=done.epoch,
            loss=done.loss,
            learning_rate=done.learning_rate,
            grad_norm=done.grad_norm,
            tokens_seen=done.tokens_seen,
            tokens_per_second=done.tokens_per_second,
            seconds_left=done.seconds_left,
        )
        if cancelled:
            control.stop_reason = "cancelled"

    def on_evaluate(self, state: TrainingState, control: Control) -> None:
        """The loss on held-out data."""
        evaluation = state.evaluations[-1]
        numbers = {f"eval_{name}": value for name, value in evaluation.metrics.items()}
        if self.tell("evaluation", step=evaluation.step, **numbers):
            control.stop_reason = "cancelled"

    def on_checkpoint(self, saved: CheckpointSaved) -> None:
        """From here the run could go on."""
        self.tell("checkpoint", step=saved.step, seconds=saved.seconds)
