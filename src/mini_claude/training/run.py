"""A training run from a model's folder and examples to a folder with the result; run again, it goes on where it was.

job folder/checkpoints/step-*/     what a killed run goes on from
           metrics.jsonl           every step and evaluation
           output/                 adapter_config.json and adapter_model.safetensors (PEFT), or a whole model
"""

import hashlib
import json
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from mini_claude.errors import InvalidRequest
from mini_claude.models.base_model import ChatModel
from mini_claude.training.arguments import LoraSettings, TrainingArguments
from mini_claude.training.callbacks import (
    Callback,
    CheckpointCallback,
    EarlyStoppingCallback,
    MetricsFileCallback,
    StopReason,
)
from mini_claude.training.checkpoint import CheckpointStore
from mini_claude.training.complete_folder import complete_folder
from mini_claude.training.examples import Example, RowProblem
from mini_claude.training.objectives import Model, create_objective
from mini_claude.training.precision import compute_dtype, create_accelerator
from mini_claude.training.snapshot import seed_everything
from mini_claude.training.strategies import create_strategy, trainable_parameters
from mini_claude.training.trainer import Trainer
from mini_claude.training.training_data import TrainingData, prepare_data
from mini_claude.training.training_state import TrainingState


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """How a run ended. A cancelled one has no output, and goes on when it is run again."""

    stop_reason: StopReason | None  # None: all steps were taken
    output_folder: Path | None
    weights_step: int  # the step whose weights are the output: the last, or after early stopping the best
    state: TrainingState
    data: TrainingData

    @property
    def metrics(self) -> dict[str, float]:
        """For the record: steps, tokens, mean loss over all steps, and on held-out data before and with the output."""
        state = self.state
        values: dict[str, float] = {"num_steps": state.step, "tokens_seen": state.tokens_seen, "seconds": state.seconds}
        values["train_loss"] = state.loss_sum / max(1, state.weight_seen)
        if state.evaluations:
            of_output = [e for e in state.evaluations if e.step <= self.weights_step][-1]
            values |= {f"eval_{name}_before": value for name, value in state.evaluations[0].metrics.items()}
            values |= {f"eval_{name}": value for name, value in of_output.metrics.items()}
        return values


def run_training(
    model_folder: Path,
    chat_model: ChatModel,
    examples: Iterable[Example | RowProblem],
    lora: LoraSettings,
    arguments: TrainingArguments,
    job_folder: Path,
    callbacks: Sequence[Callback] = (),
) -> TrainingResult:
    """Train, or go on training. `callbacks` come after the run's own: metrics file, early stopping, checkpoints.

    Raises `InvalidRequest` for data or arguments that cannot be used and where the loss stops to mean anything,
    `ModelLoadError`, `StorageError` (code "disk_full", say).
    """
    strategy = create_strategy(lora, arguments)
    data = prepare_data(examples, chat_model, arguments)
    accelerator = create_accelerator(arguments)
    seed_everything(arguments.seed)  # for the adapter's first weights, the same in every process
    model = strategy.load(model_folder, accelerator.device, compute_dtype(arguments, accelerator.device))
    _check_checkpoint_size(model, arguments)
    seed_everything(arguments.seed + accelerator.process_index)

    own: list[Callback] = [MetricsFileCallback(job_folder / "metrics.jsonl"), CheckpointCallback(arguments)]
    if arguments.early_stopping_patience:
        own.append(EarlyStoppingCallback(arguments.early_stopping_patience))
    checkpoints = job_folder / "checkpoints"
    trainer = Trainer(
        model,
        create_objective(arguments),
        data.train,
        data.held_out,
        arguments,
        accelerator,
        callbacks=[*own, *callbacks],
        store=CheckpointStore(
            checkpoints, keep_last=arguments.save_total_limit, max_bytes=arguments.max_checkpoint_bytes
        ),
        run_id=_run_id(data, lora, arguments, accelerator.num_processes),
    )
    stop_reason = trainer.train()
    output_folder = None
    if stop_reason != "cancelled":
        output_folder = job_folder / "output"
        if accelerator.is_main_process:
            shutil.rmtree(output_folder, ignore_errors=True)  # of a run that ended before anybody heard of it
            with complete_folder(output_folder) as part:
                strategy.save(model, part)
        accelerator.wait_for_everyone()
    return TrainingResult(stop_reason, output_folder, trainer.weights_step, trainer.state, data)


def _run_id(data: TrainingData, lora: LoraSettings, arguments: TrainingArguments, num_processes: int) -> str:
    """SHA-256 of everything that decides what is computed. How often and how much is saved does not."""
    values = asdict(arguments)
    for name in ("save_steps", "save_minutes", "save_total_limit", "max_checkpoint_bytes", "logging_steps"):
        del values[name]
    parts = [data.sha256, asdict(lora), values, num_processes]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _check_checkpoint_size(model: Model, arguments: TrainingArguments) -> None:
    """Before the first step instead of at the first save: two checkpoints must fit into the bound for a moment."""
    num_bytes = sum(parameter.nbytes for parameter in trainable_parameters(model).values())
    needed = 2 * 3 * num_bytes  # a checkpoint has the weights and two moments of each
    if needed > arguments.max_checkpoint_bytes:
        raise InvalidRequest(
            f"Two checkpoints of this run need {needed:,} bytes, and max_checkpoint_bytes is "
            f"{arguments.max_checkpoint_bytes:,}; allow more, or train an adapter with a smaller r.",
            code="checkpoint_too_large",
            param="max_checkpoint_bytes",
        )
