"""Bodies of the training API: PEFT's and Transformers' names, our bounds, and nothing that reaches further.

What `transformers.TrainingArguments` and `peft.LoraConfig` offer beyond these fields (paths, code, reporting, remote
services) is refused by name like any other unknown field.
"""

from dataclasses import asdict
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field

from mini_claude.data.records import Job, JobEvent
from mini_claude.training.arguments import Batching, LoraSettings, Method, Objective, Schedule, TrainingArguments
from mini_claude.types import DTypeName, Quantization
from mini_claude.web.schemas.sampling import ModelName, WireModel

ModulePart = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
Fraction = Annotated[float, Field(ge=0, lt=1)]


class LoraFields(WireModel):
    """`lora_config`: what is added to the model."""

    r: Annotated[int, Field(ge=1, le=256)] = Field(
        16, description="Rank: how much the adapter can take in. More learns more, and takes more memory."
    )
    lora_alpha: Annotated[int, Field(ge=1, le=4096)] = Field(
        32, description="How strongly the adapter acts: its update is scaled by alpha / r. Mostly twice the rank."
    )
    lora_dropout: Annotated[float, Field(ge=0, le=0.9)] = Field(
        0.0, description="The part of the adapter's inputs that is left out at random, against learning by heart."
    )
    target_modules: Annotated[list[ModulePart], Field(min_length=1, max_length=64)] = Field(
        ["all-linear"], description="Which layers get an adapter: last parts of module names, or all-linear."
    )
    use_rslora: bool = Field(False, description="Scale by alpha / sqrt(r) (rsLoRA): steadier with a high rank.")
    use_dora: bool = Field(
        False, description="Learn magnitude and direction apart (DoRA): slower, at times better with a low rank."
    )

    def settings(self) -> LoraSettings:
        """The plain value."""
        return LoraSettings(**self.model_dump() | {"target_modules": tuple(self.target_modules)})


class TrainingFields(WireModel):
    """`training_args`."""

    method: Method = Field("lora", description="lora trains a small adapter beside the model, full all weights.")
    objective: Objective = Field("sft", description="sft learns the assistant's words, dpo which answer is better.")
    learning_rate: Annotated[float, Field(gt=0, le=1)] = Field(
        2e-4,
        description="How far a step goes at most. Too high and the loss jumps about, too low and little is learned.",
    )
    num_train_epochs: Annotated[float, Field(gt=0, le=1000)] = Field(3.0, description="How often all rows are seen.")
    max_steps: Annotated[int, Field(ge=0, le=10_000_000)] = Field(
        0, description="Above 0: so many steps, however often the rows are seen."
    )
    per_device_train_batch_size: Annotated[int, Field(ge=1, le=256)] = Field(
        8, description="Examples that are learned from together. More is steadier and takes more memory."
    )
    gradient_accumulation_steps: Annotated[int, Field(ge=1, le=1024)] = Field(
        1, description="So many batches make one step: as steady as a larger batch, without its memory."
    )
    max_length: Annotated[int, Field(ge=8, le=131_072)] = Field(512, description="Tokens an example; the rest is cut.")
    batching: Batching = Field(
        "length_grouped",
        description="length_grouped puts examples of like length together, packed fills rows with them.",
    )
    lr_scheduler_type: Schedule = Field("cosine", description="How the learning rate falls after the warm-up.")
    warmup_ratio: Fraction = Field(
        0.03, description="The part of the steps in which the learning rate rises to its top."
    )
    weight_decay: Fraction = Field(0.0, description="How strongly the trained weights are pulled towards zero (AdamW).")
    max_grad_norm: Annotated[float, Field(gt=0, le=1000)] = Field(
        1.0, description="Longer gradients are shortened to this, so that one odd row cannot ruin the rest."
    )
    adam_beta1: Fraction = Field(0.9, description="How long AdamW remembers the direction.")
    adam_beta2: Fraction = Field(0.999, description="How long AdamW remembers the size of gradients.")
    adam_epsilon: Annotated[float, Field(gt=0, le=1)] = Field(1e-8, description="Keeps AdamW from dividing by zero.")
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = Field(
        0, description="Decides the order of the rows and the first weights; the same one gives the same run."
    )
    dtype: DTypeName = Field("auto", description="The numbers' type; auto: float32 on a CPU, bfloat16 on most GPUs.")
    quantization: Quantization | None = Field(None, description="int8 or nf4 for the frozen base (QLoRA).")
    gradient_checkpointing: bool = Field(
        False, description="Compute some values twice instead of keeping them: less memory."
    )
    eval_ratio: Annotated[float, Field(ge=0, le=0.5)] = Field(
        0.1, description="The part of the rows held out: never trained on, to measure with."
    )
    eval_steps: Annotated[int, Field(ge=0, le=10_000_000)] = Field(
        0, description="Measure on held-out rows every so many steps; 0: before and after the run only."
    )
    early_stopping_patience: Annotated[int, Field(ge=0, le=1000)] = Field(
        0, description="End after so many measurements without a better one; 0: never."
    )
    logging_steps: Annotated[int, Field(ge=1, le=10_000)] = Field(1, description="Report every so many steps.")
    save_steps: Annotated[int, Field(ge=0, le=10_000_000)] = Field(
        0, description="Save a checkpoint every so many steps; 0: by the clock."
    )
    save_minutes: Annotated[float, Field(ge=0, le=1440)] = Field(
        0.0, description="Save a checkpoint every so many minutes; 0: as often as it costs little."
    )
    save_total_limit: Annotated[int, Field(ge=1, le=100)] = Field(2, description="Checkpoints kept, besides the best.")
    max_checkpoint_bytes: Annotated[int, Field(ge=1_000_000, le=10**13)] = Field(
        4_000_000_000, description="Larger checkpoints are refused before they fill the disk."
    )
    dpo_beta: Annotated[float, Field(gt=0, le=10)] = Field(
        0.1, description="For dpo: how much holds the model to what it was. Lower lets it change more."
    )
    drop_broken_rows: bool = Field(False, description="false: a broken row fails the job before its first step.")

    def arguments(self) -> TrainingArguments:
        """The plain value."""
        return TrainingArguments(**self.model_dump())


class JobRequest(WireModel):
    """Body of POST /api/v1/training/jobs."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"dataset_path": "my-rows", "adapter_name": "support-bot", "training_args": {"num_train_epochs": 1}}
            ]
        }
    )

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
