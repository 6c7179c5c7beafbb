"""What a training job is told: plain values in PEFT's and Transformers' names. The wire's bounds are in web/schemas."""

from dataclasses import dataclass, field
from typing import Literal

from mini_claude.errors import InvalidRequest
from mini_claude.types import DTypeName, Quantization

Method = Literal["lora", "full"]  # with a quantised base, lora is QLoRA (Dettmers et al. 2023)
Objective = Literal["sft", "dpo"]
Schedule = Literal["linear", "cosine", "constant"]
Batching = Literal["length_grouped", "packed"]


@dataclass(frozen=True, slots=True)
class LoraSettings:
    """PEFT's LoraConfig, as far as a client may set it (Hu et al. 2021; rsLoRA: Kalajdzievski 2023; DoRA: Liu 2024)."""

    r: int = 16
    lora_alpha: int = 32
    lora_dropout: float = 0.0
    target_modules: tuple[str, ...] = ("all-linear",)  # last parts of module names
    use_rslora: bool = False  # scale by alpha / sqrt(r) instead of alpha / r
    use_dora: bool = False


@dataclass(frozen=True, slots=True)
class TrainingArguments:
    """One run. Where names are those of `transformers.TrainingArguments`, so are their meanings."""

    method: Method = "lora"
    objective: Objective = "sft"
    learning_rate: float = 2e-4
    num_train_epochs: float = 3.0
    max_steps: int = 0  # more than 0: instead of epochs
    per_device_train_batch_size: int = 8
    gradient_accumulation_steps: int = 1
    max_length: int = 512  # tokens of an example; longer ones are cut at the end
    batching: Batching = "length_grouped"
    lr_scheduler_type: Schedule = "cosine"
    warmup_ratio: float = 0.03
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_epsilon: float = 1e-8
    seed: int = 0
    dtype: DTypeName = "auto"  # float32 on a CPU, bfloat16 on a GPU that has it
    quantization: Quantization | None = None  # of the frozen base
    gradient_checkpointing: bool = False
    eval_ratio: float = 0.1  # held out; at least one example where there are ten
    eval_steps: int = 0  # 0: only before the first and after the last step
    early_stopping_patience: int = 0  # evaluations without improvement; 0: never
    logging_steps: int = 1
    save_steps: int = 0  # 0: the interval is chosen by the clock (checkpoint.py)
    save_minutes: float = 0.0
    save_total_limit: int = 2  # besides the best
    max_checkpoint_bytes: int = 4_000_000_000
    dpo_beta: float = 0.1
    drop_broken_rows: bool = False  # False: a broken row fails the job before its first step


@dataclass(frozen=True, slots=True)
class JobSpec:
    """Everything that decides what a job computes; it never changes once the job is stored."""

    model_name: str
    dataset_name: str
    dataset_sha256: str
    adapter_name: str
    lora: LoraSettings = field(default_factory=LoraSettings)
    arguments: TrainingArguments = field(default_factory=TrainingArguments)


def check_trainable(lora: LoraSettings, arguments: TrainingArguments) -> None:
    """Raise `InvalidRequest` for settings that are each fine and cannot go together."""
    if arguments.method == "full":
        if arguments.quantization is not None:
            raise InvalidRequest(
                "Quantised weights cannot be trained themselves; use method lora, or leave quantization out.",
                param="training_args.quantization",
            )
        if arguments.objective == "dpo":
            raise InvalidRequest(
                "DPO compares with the model as it was, which only an adapter leaves as it was; use method lora.",
                param="training_args.method",
            )
    elif arguments.quantization == "nf4" and lora.use_dora:
        raise InvalidRequest(
            "DoRA needs the norms of the base's weights; some processors keep 4-bit weights in a layout from "
            "which PEFT reads wrong ones; use quantization int8, or leave use_dora out.",
            param="lora_config.use_dora",
        )
