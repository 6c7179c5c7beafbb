"""What a job costs on this machine, found by doing a little of it."""

import resource
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from mini_claude.training.arguments import LoraSettings, TrainingArguments
from mini_claude.training.callbacks import Callback, Control, StepDone
from mini_claude.training.examples import TokenizedExample, TokenizedPreference
from mini_claude.training.objectives import create_objective
from mini_claude.training.precision import compute_dtype, create_accelerator
from mini_claude.training.snapshot import seed_everything
from mini_claude.training.strategies import create_strategy
from mini_claude.training.trainer import Trainer


@dataclass(frozen=True, slots=True)
class Measurement:
    """`tokens_per_second` counts all tokens of the examples, supervised or not.

    `peak_memory_bytes` is the most that this process has ever held resident, on a GPU what was allocated there.
    """

    tokens_per_second: float
    seconds_per_step: float
    peak_memory_bytes: int


def measure(
    model_folder: Path,
    examples: Sequence[TokenizedExample | TokenizedPreference],
    lora: LoraSettings,
    arguments: TrainingArguments,
    num_steps: int,
) -> Measurement:
    """Take `num_steps` steps of the job and throw them away; one more goes before them to warm up.

    Raises as `run_training` does. Measures only what it should in a process of its own.
    """
    strategy = create_strategy(lora, arguments)
    accelerator = create_accelerator(arguments)
    seed_everything(arguments.seed)
    model = strategy.load(model_folder, accelerator.device, compute_dtype(arguments, accelerator.device))
    steps = _Steps()
    taken = replace(arguments, max_steps=num_steps + 1, eval_steps=0)
    Trainer(model, create_objective(arguments), examples, (), taken, accelerator, callbacks=[steps]).train()
    measured = steps.done[1:]
    seconds = [done.seconds for done in measured]
    return Measurement(
        tokens_per_second=sum(done.num_tokens for done in measured) / sum(seconds),
        seconds_per_step=statistics.fmean(seconds),
        peak_memory_bytes=_peak_memory_bytes(accelerator.device),
    )


class _Steps(Callback):
    def __init__(self) -> None:
        self.done: list[StepDone] = []

    def on_step(self, done: StepDone, control: Control) -> None:
        self.done.append(done)


def _peak_memory_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in KiB
