"""Bodies of the training API: PEFT's and Transformers' names, our bounds, and nothing that reaches further.

What `transformers.TrainingArguments` and `peft.LoraConfig` offer beyond these fields (paths, code, reporting, remote
services) is refused by name like any other unknown field.
"""

from dataclasses import asdict
from typing import Annotated, Any, Self

from pydantic import BaseModel, Field

from mini_claude.data.records import Job, JobEvent
from mini_claude.training.arguments import Batching, LoraSettings, Method, Objective, Schedule, TrainingArguments
from mini_claude.types import DTypeName, Quantization
from mini_claude.web.schemas.sampling import ModelName, WireModel

ModulePart = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
Fraction = Annotated[float, Field(ge=0, lt=1)]


class LoraFields(WireModel):
    """`lora_config`: what is added to the model."""

    r: Annotated[int, Field(ge=1, le=256)] = Field(16, description="Rank of the update.")
    lora_alpha: Annotated[int, Field(ge=1, le=4096)] = Field(32, description="The update is scaled by alpha / r.")
    lora_dropout: Annotated[float, Field(ge=0, le=0.9)] = 0.0
    target_modules: Annotated[list[ModulePart], Field(min_length=1, max_length=64)] = Field(
        ["all-linear"], description="Last parts of module names, or all-linear."
    )
    use_rslora: bool = Field(False, description="Scale by alpha / sqrt(r) (rsLoRA).")
    use_dora: bool = Field(False, description="Learn magnitude and direction apart (DoRA).")

    def settings(self) -> LoraSettings:
        """The plain value."""
        return LoraSettings(**self.model_dump() | {"target_modules": tuple(self.target_modules)})


class TrainingFields(WireModel):
    """`training_args`."""

    method: Method = Field("lora", description="lora trains an adapter, full all weights.")
    objective: Objective = Field("sft", description="sft learns the assistant's words, dpo which answer is better.")
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 2e-4
    num_train_epochs: Annotated[float, Field(gt=0, le=1000)] = 3.0
    max_steps: Annotated[int, Field(ge=0, le=10_000_000)] = Field(0, description="Above 0: instead of epochs.")
    per_device_train_batch_size: Annotated[int, Field(ge=1, le=256)] = 8
    gradient_accumulation_steps: Annotated[int, Field(ge=1, le=1024)] = 1
    max_length: Annotated[int, Field(ge=8, le=131_072)] = Field(512, description="Tokens an example; the rest is cut.")
    batching: Batching = Field("length_grouped", description="length_grouped or packed.")
    lr_scheduler_type: Schedule = "cosine"
    warmup_ratio: Fraction = 0.03
    weight_decay: Fraction = 0.0
    max_grad_norm: Annotated[float, Field(gt=0, le=1000)] = 1.0
    adam_beta1: Fraction = 0.9
    adam_beta2: Fraction = 0.999
    adam_epsilon: Annotated[float, Field(gt=0, le=1)] = 1e-8
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = 0
    dtype: DTypeName = "auto"
    quantization: Quantization | None = Field(None, description="int8 or nf4 for the frozen base (QLoRA).")
    gradient_checkpointing: bool = False
    eval_ratio: Annotated[float, Field(ge=0, le=0.5)] = Field(0.1, description="The part of the rows held out.")
    eval_steps: Annotated[int, Field(ge=0, le=10_000_000)] = Field(0, description="0: before and after the run only.")
    early_stopping_patience: Annotated[int, Field(ge=0, le=1000)] = 0
    logging_steps: Annotated[int, Field(ge=1, le=10_000)] = 1
    save_steps: Annotated[int, Field(ge=0, le=10_000_000)] = Field(0, description="0: by the clock.")
    save_minutes: Annotated[float, Field(ge=0, le=1440)] = 0.0
    save_total_limit: Annotated[int, Field(ge=1, le=100)] = 2
    max_checkpoint_bytes: Annotated[int, Field(ge=1_000_000, le=10**13)] = 4_000_000_000
    dpo_beta: Annotated[float, Field(gt=0, le=10)] = 0.1
    drop_broken_rows: bool = Field(False, description="false: a broken row fails the job before its first step.")

    def arguments(self) -> TrainingArguments:
        """The plain value."""
        return TrainingArguments(**self.model_dump())


class JobRequest(WireModel):
    """Body of POST /api/v1/training/jobs."""

    dataset_path: Annotated[str, Field(min_length=1, max_length=256)] = Field(
        description="The name of an uploaded dataset; never a path of the server's."
    )
    model_name: ModelName | None = Field(None, description="The base model; null: the default one.")
    adapter_name: Annotated[str, Field(min_length=1, max_length=64)] | None = Field(
        None, description="What the result is called; null: like the dataset."
    )
    lora_config: LoraFields = Field(default_factory=LoraFields)
    training_args: TrainingFields = Field(default_factory=TrainingFields)


class JobPublic(BaseModel):
    """A job as its owner sees it."""

    id: str
    state: str
    model_name: str
    dataset_path: str
    dataset_sha256: str
    adapter_name: str
    lora_config: dict[str, Any]
    training_args: dict[str, Any]
    created_at: float
    started_at: float | None
    ended_at: float | None
    cancel_requested: bool
    progress: dict[str, Any] = Field(description="The last step's numbers: step, num_steps, loss, ...")
    error: dict[str, Any] | None
    adapter: str | None = Field(description="The model reference of the result, once the job is completed.")

    @classmethod
    def of(cls, job: Job) -> Self:
        """From the plain value."""
        error = None if job.error is None else {"code": job.error[1].code, "message": job.error[1].message}
        return cls(
            id=job.id,
            state=job.state,
            model_name=job.spec.model_name,
            dataset_path=job.spec.dataset_name,
            dataset_sha256=job.spec.dataset_sha256,
            adapter_name=job.spec.adapter_name,
            lora_config=asdict(job.spec.lora),
            training_args=asdict(job.spec.arguments),
            created_at=job.created_at,
            started_at=job.started_at,
            ended_at=job.ended_at,
            cancel_requested=job.cancel_requested,
            progress=job.progress,
            error=error,
            adapter=job.adapter,
        )


class JobList(BaseModel):
    """Jobs, newest first."""

    jobs: list[JobPublic]


class EventPublic(BaseModel):
    """Something that happened to a job; `number` counts from 1 without gaps."""

    number: int
    type: str
    data: dict[str, Any]
    created_at: float

    @classmethod
    def of(cls, event: JobEvent) -> Self:
        """From the plain value."""
        return cls(number=event.number, type=event.type, data=event.data, created_at=event.created_at)


class JobProgress(BaseModel):
    """Answer of GET .../progress: where the job stands, and its events after the given number."""

    job: JobPublic
    events: list[EventPublic]
