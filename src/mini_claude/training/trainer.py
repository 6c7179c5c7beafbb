"""The training loop: what a step computes, when it is measured, when it is saved, when it ends.

    for each step:
        for each row of its examples:        a step is what the arguments say, a row is what is computed at once
            loss of the row / weight of the step      -> gradients add up to those of the step's mean loss
        add up the gradients of all processes
        clip them, set the learning rate, AdamW

Because every row is divided by the weight of the whole step (its supervised tokens), how a step is cut into
micro-batches, rows and processes changes nothing but rounding: 1 x 16, 4 x 4 and 16 x 1 examples are the same step.
"""

import logging
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Final

import torch
from accelerate import Accelerator

from mini_claude.errors import StorageError
from mini_claude.training.arguments import TrainingArguments
from mini_claude.training.batching import BatchPlan
from mini_claude.training.callbacks import Callback, CheckpointSaved, Control, RunStarted, StepDone, StopReason
from mini_claude.training.checkpoint import CheckpointStore
from mini_claude.training.examples import TokenizedExample, TokenizedPreference
from mini_claude.training.flat_row import FlatRow, flat_rows, num_tokens, texts_of
from mini_claude.training.loss_guard import check_evaluation, check_gradients, check_losses
from mini_claude.training.objectives import Model, Objective
from mini_claude.training.optimizer import create_optimizer
from mini_claude.training.processes import add_up, add_up_gradients, agree
from mini_claude.training.schedule import learning_rate
from mini_claude.training.snapshot import restore_snapshot, restore_weights, take_snapshot
from mini_claude.training.strategies import trainable_parameters
from mini_claude.training.training_state import TrainingState
from mini_claude.utils.model_utils import map_large_memory, trim_heap

logger = logging.getLogger(__name__)

# Tokens computed at once. On a CPU, rows of this size keep the cores as busy as longer ones would, in less memory.
_CPU_ROW_TOKENS: Final = 240
_GPU_ROW_TOKENS: Final = 4096


class Trainer:
    """Trains `model` in place. With a store, it goes on from the newest intact checkpoint of the same run."""

    def __init__(
        self,
        model: Model,
        objective: Objective,
        train: Sequence[TokenizedExample | TokenizedPreference],
        held_out: Sequence[TokenizedExample | TokenizedPreference],
        arguments: TrainingArguments,
        accelerator: Accelerator,
        *,
        callbacks: Sequence[Callback] = (),
        store: CheckpointStore | None = None,
        run_id: str = "",
    ) -> None:
        """`run_id` is the same for runs that compute the same; only those can continue each other's checkpoints."""
        self.state = TrainingState()
        self.weights_step = 0  # of the weights that are in the model
        self._model = model
        self._objective = objective
        self._train = train
        self._held_out = sorted(held_out, key=lambda example: texts_of(example)[0].token_ids)  # shares the most
        self._arguments = arguments
        self._accelerator = accelerator
        self._callbacks = tuple(callbacks) if accelerator.is_main_process else ()
        self._store = store
        self._run_id = run_id
        self._control = Control()
        self._saved: TrainingState | None = None  # what the newest checkpoint holds
        self._plan = BatchPlan([num_tokens(example) for example in train], arguments, accelerator.num_processes)
        self._parameters = trainable_parameters(model)
        self._adamw = create_optimizer(self._parameters.values(), arguments)
        self._optimizer = accelerator.prepare_optimizer(self._adamw)  # the same, minding float16's gradient scale
        self._row_tokens = _CPU_ROW_TOKENS if accelerator.device.type == "cpu" else _GPU_ROW_TOKENS

    def train(self) -> StopReason | None:
        """Take all steps that are left. Says why, when an observer ended the run before the last one.

        Raises `InvalidRequest` (code "loss_not_finite" or "loss_zero", naming the step and the rows) when training has
        gone wrong, `StorageError` when a checkpoint cannot be written.
        """
        self._start()
        if not self.state.evaluations:
            self._evaluate()
            self._save_if_wanted()
        while self.state.step < self._plan.num_steps and self._control.stop_reason is None:
            done = self._take_step()
            for callback in self._callbacks:
                callback.on_step(done, self._control)
            if self._arguments.eval_steps and done.step % self._arguments.eval_steps == 0:
                self._evaluate()
            self._save_if_wanted()
        self._end()
        return self._control.stop_reason

    def _start(self) -> None:
        checkpoint, damaged = self._store.load_newest() if self._store is not None else (None, [])
        for one in damaged:
            logger.warning("Passed over a checkpoint: %s", one.reason)
        if checkpoint is not None:
            parts = self._parameters, self._adamw, self._accelerator
            self.state = self._saved = restore_snapshot(checkpoint, self._run_id, *parts)
        self._model.train()
        trim_heap()  # of what loading left
        map_large_memory()
        started = RunStarted(
            num_steps=self._plan.num_steps,
            num_train_examples=len(self._train),
            num_eval_examples=len(self._held_out),
            num_trainable_parameters=sum(parameter.numel() for parameter in self._parameters.values()),
            state=self.state,
            resumed_from=None if checkpoint is None else checkpoint.step,
            damaged=tuple(damaged),
        )
        for callback in self._callbacks:
            callback.on_start(started, self._control)
        agree(self._control)

    def _take_step(self) -> StepDone:
        begun = time.perf_counter()
        number = self.state.step + 1
        step = self._plan.step(self.state.step)
        examples = [self._train[index] for batch in step.micro_batches for index in batch]
        weight = sum(self._objective.weight(example) for example in examples)
        rate = learning_rate(self._arguments, self.state.step, self._plan.num_steps)

        mine = step.micro_batches[self._accelerator.process_index :: self._accelerator.num_processes]
        rows = [row for batch in mine for row in flat_rows([self._train[i] for i in batch], self._row_tokens)]
        sums = self._losses(number, rows, backward_by=weight)
        add_up_gradients(self._accelerator, self._parameters.values())
        limit = self._arguments.max_grad_norm or math.inf
        grad_norm = float(self._accelerator.clip_grad_norm_(self._parameters.values(), limit))
        if self._accelerator.scaler is None:  # which skips such steps by itself, and scales less from then on
            check_gradients(number, grad_norm, [row for flat_row in rows for row in flat_row.file_rows])
        for group in self._adamw.param_groups:
            group["lr"] = rate
        self._optimizer.step()
        self._optimizer.zero_grad()

        return self._count(step.epoch, examples, weight, sums, rate, grad_norm, time.perf_counter() - begun)

    def _count(
        self,
        epoch: float,
        examples: Sequence[TokenizedExample | TokenizedPreference],
        weight: int,
        sums: Mapping[str, float],
        rate: float,
        grad_norm: float,
        seconds: float,
    ) -> StepDone:
        """Move the state on by one step and say what it was."""
        step_tokens = sum(map(num_tokens, examples))
        self.state = replace(
            self.state,
            step=self.state.step + 1,
            tokens_seen=self.state.tokens_seen + step_tokens,
            weight_seen=self.state.weight_seen + weight,
            loss_sum=self.state.loss_sum + sums["loss"],
            seconds=self.state.seconds + seconds,
        )
        means = {name: value / weight for name, value in sums.items()}
        return StepDone(
            step=self.state.step,
            num_steps=self._plan.num_steps,
            epoch=epoch,
            loss=means.pop("loss"),
            learning_rate=rate,
            grad_norm=grad_norm,
            num_tokens=step_tokens,
            weight=weight,
            tokens_seen=self.state.tokens_seen,
            seconds=seconds,
            seconds_left=self.state.seconds / self.state.step * (self._plan.num_steps - self.state.step),
            metrics=means,
        )

    def _losses(self, number: int, rows: Iterable[FlatRow], backward_by: int | None) -> dict[str, float]:
        """Sums of the loss and the objective's other figures over all processes' rows, with gradients or without."""
        losses = []
        sums = {"loss": 0.0}
        for row in rows:
            with self._accelerator.autocast():
                row_loss = self._objective.loss(self._model, row)
            if backward_by is not None:
                self._accelerator.backward(row_loss.total / backward_by)
            loss = row_loss.total.item()
            losses.append((loss, row.file_rows))
            for name, value in {"loss": loss, **row_loss.sums}.items():
                sums[name] = sums.get(name, 0.0) + value
        if backward_by is not None:
            check_losses(number, losses)
        return add_up(sums)

    @torch.no_grad()
    def _evaluate(self) -> None:
        """The mean loss on the held-out part, if there is one."""
        if not self._held_out:
            return
        self._model.eval()
        accelerator = self._accelerator
        mine = self._held_out[accelerator.process_index :: accelerator.num_processes]
        sums = self._losses(self.state.step, flat_rows(mine, self._row_tokens), backward_by=None)
        self._model.train()
        weight = sum(self._objective.weight(example) for example in self._held_out)
        metrics = {name: value / weight for name, value in sums.items()}
        check_evaluation(self.state.step, metrics)
        self.state = self.state.evaluated(metrics)
        for callback in self._callbacks:
            callback.on_evaluate(self.state, self._control)

    def _save_if_wanted(self) -> None:
        """Not after the last step: the end will, when it has measured too."""
        agree(self._control)
        if self._control.save and self.state.step < self._plan.num_steps:
            self._save()

    def _save(self) -> None:
        self._control.save = False
        if self._store is None or self._saved == self.state:
            return
        begun = time.perf_counter()
        snapshot = take_snapshot(self._run_id, self.state, self._parameters, self._adamw, self._accelerator)
        if self._accelerator.is_main_process:
            best = self.state.best
            folder = self._store.save(snapshot, None if best is None else best.step)
            saved = CheckpointSaved(self.state.step, folder, time.perf_counter() - begun)
            for callback in self._callbacks:
                callback.on_checkpoint(saved)
        self._saved = self.state
        self._accelerator.wait_for_everyone()

    def _end(self) -> None:
        """Measure and save what was not just measured and saved; after early stopping, go back to the best weights."""
        if self._control.stop_reason != "cancelled" and not self.state.is_evaluated:
            self._evaluate()
        self._save()
        self.weights_step = self.state.step
        if self._control.stop_reason == "early_stopping":
            self._restore_best()
        for callback in self._callbacks:
            callback.on_end(self.state, self._control.stop_reason)

    def _restore_best(self) -> None:
        best = self.state.best
        if self._store is None or best is None:
            return
        try:
            restore_weights(self._store.load(best.step), self._parameters)
            self.weights_step = best.step
        except StorageError as error:
            logger.warning("The last weights are kept instead of the best: %s", error.message)
