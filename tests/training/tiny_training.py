"""Training in seconds: tiny random models in folders, bytes as tokens, and data that repeats itself."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from mini_claude.models.echo_model import EchoModel
from mini_claude.training.arguments import LoraSettings, TrainingArguments
from mini_claude.training.attention import use_flat_rows
from mini_claude.training.callbacks import Callback, Control, RunStarted, StepDone
from mini_claude.training.examples import Conversation, Example, Preference, TokenizedExample
from mini_claude.training.run import TrainingResult, run_training
from mini_claude.training.strategies import LowRankAdapter
from mini_claude.training.training_state import TrainingState
from mini_claude.types import Message

from ..engine.conftest import build

CHAT_MODEL = EchoModel(context_length=256)
WORDS = ("fox", "dog", "river", "stone", "cloud", "tree", "bird", "house")


def save_model(folder: Path, architecture: str = "llama", **changes: object) -> Path:
    config = build(architecture).config
    config.update(changes)
    torch.manual_seed(7)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    (folder / "tokenizer.json").write_text("{}")  # a model folder has one; here bytes are tokens
    return folder


def conversations(number: int) -> list[Example]:
    """Of many lengths; all begin with the same system message."""
    return [
        Conversation(
            (
                Message("system", "Be brief."),
                Message("user", f"{WORDS[i % 8]} {i}?"),
                Message("assistant", " ".join(WORDS[i % 8] for _ in range(1 + i % 5))),
            ),
            row=i + 1,
        )
        for i in range(number)
    ]


def preferences(number: int) -> list[Example]:
    """The longer answer is the better one."""
    return [
        Preference((Message("user", f"{WORDS[i % 8]} {i}?"),), f"{WORDS[i % 8]}, yes", "no", row=i + 1)
        for i in range(number)
    ]


def tokenized(text: str, answer: str, row: int = 1) -> TokenizedExample:
    """Bytes of both; those of the answer are supervised."""
    ids = tuple((text + answer).encode())
    return TokenizedExample(ids, (False,) * len(text) + (True,) * len(answer), row)


def flat_model(architecture: str = "llama") -> PreTrainedModel:
    model = build(architecture)
    use_flat_rows(model)
    model.requires_grad_(False)
    return model


def adapted(model: PreTrainedModel, lora: LoraSettings | None = None) -> PeftModel:
    """With an adapter whose effect is not nothing, as it is at the start."""
    torch.manual_seed(0)
    result = LowRankAdapter(lora or LoraSettings(r=4), TrainingArguments()).adapt(model)
    with torch.no_grad():
        for name, parameter in result.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0.0, 0.1)
    return result


def arguments(**changes: Any) -> TrainingArguments:
    settings: dict[str, Any] = {
        "max_steps": 6,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "max_length": 128,
        "save_steps": 1000,
        **changes,
    }
    return TrainingArguments(**settings)


def train(
    model_folder: Path,
    job_folder: Path,
    *,
    examples: Sequence[Example] | None = None,
    lora: LoraSettings | None = None,
    callbacks: Sequence[Callback] = (),
    **changes: Any,
) -> TrainingResult:
    return run_training(
        model_folder,
        CHAT_MODEL,
        conversations(40) if examples is None else examples,
        lora or LoraSettings(r=4, lora_alpha=8),
        arguments(**changes),
        job_folder,
        callbacks,
    )


def weights(result: TrainingResult) -> dict[str, torch.Tensor]:
    assert result.output_folder is not None
    (path,) = result.output_folder.glob("*.safetensors")
    return load_file(path)


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Bit for bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


class Recorder(Callback):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.started: list[RunStarted] = []
        self.steps: list[StepDone] = []
        self.ended: list[TrainingState] = []

    def on_start(self, started: RunStarted, control: Control) -> None:
        self.started.append(started)

    def on_step(self, done: StepDone, control: Control) -> None:
        self.steps.append(done)

    def on_end(self, state: TrainingState, stop_reason: object) -> None:
        self.ended.append(state)

    @property
    def losses(self) -> list[float]:
        return [done.loss for done in self.steps]


class KilledError(Exception):
    """Stands for the end of the process."""


class KillAfter(Callback):
    """Ends the run like a kill after a step, before anything is saved for it."""

    def __init__(self, step: int) -> None:
        self._step = step

    def on_step(self, done: StepDone, control: Control) -> None:
        if done.step == self._step:
            raise KilledError


@contextmanager
def bfloat16_possible() -> Iterator[None]:
    """Accelerate fixes the element type for the life of a process; this lets a test have another one."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state()
    try:
        with warnings.catch_warnings():
            yield
    finally:
        AcceleratorState._reset_state()
        Accelerator()
