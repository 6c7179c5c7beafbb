"""The native API's requests and answers about datasets; a preview is shown as `DoctorReport`."""

from dataclasses import replace
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field

from mini_claude.data.records import Dataset
from mini_claude.training.doctor_report import Examination
from mini_claude.training.examples import Container, DatasetFormat
from mini_claude.web.schemas.sampling import ModelName, WireModel
from mini_claude.web.schemas.training import LoraFields, TrainingFields

MAX_SAMPLES = 50
UPLOAD_FORM = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {
                        "file": {
                            "type": "string",
                            "format": "binary",
                            "description": "JSONL, JSON, CSV, Parquet or plain text: messages, ShareGPT, Alpaca, "
                            "prompt and completion, dialogues, preferences, texts.",
                        },
                        "name": {
                            "type": "string",
                            "pattern": "^[a-z0-9_-][a-z0-9._-]{0,63}$",
                            "description": "What the dataset is called; left out: like the file.",
                        },
                    },
                }
            }
        },
    }
}


class ProblemPublic(BaseModel):
    """A row that cannot be used, and why. `line` is null where the file has no lines."""

    row: int
    line: int | None
    reason: str


class DatasetPublic(BaseModel):
    """A dataset: `num_broken` of its `num_rows` rows cannot be used, and `problems` are the first of them."""

    name: str
    format: DatasetFormat
    container: Container
    num_rows: int
    num_broken: int
    problems: list[ProblemPublic]
    sha256: str
    num_bytes: int
    file_name: str
    created_at: float

    @classmethod
    def of(cls, dataset: Dataset) -> Self:
        """From the plain value."""
        return cls(
            name=dataset.name,
            format=dataset.format,
            container=dataset.container,
            num_rows=dataset.num_rows,
            num_broken=dataset.num_broken,
            problems=[ProblemPublic(row=each.row, line=each.line, reason=each.reason) for each in dataset.problems],
            sha256=dataset.sha256,
            num_bytes=dataset.num_bytes,
            file_name=dataset.file_name,
            created_at=dataset.created_at,
        )


class DatasetList(BaseModel):
    """The caller's datasets by name."""

    datasets: list[DatasetPublic]


class PreviewRequest(WireModel):
    """Body of POST /api/v1/datasets/{name}/preview."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"model": "smollm2-135m", "num_rows": 3}]})

    model: ModelName | None = Field(None, description="The model that would be trained; null: the default one.")
    max_length: Annotated[int, Field(ge=8, le=131_072)] | None = Field(
        None, description="Tokens of an example; null: as training_args says."
    )
    num_rows: Annotated[int, Field(ge=0, le=MAX_SAMPLES)] = Field(5, description="Rows to show token by token.")
    measure: bool = Field(False, description="Also take a few real training steps and say what a job would cost.")
    lora_config: LoraFields = Field(default_factory=LoraFields)
    training_args: TrainingFields = Field(default_factory=TrainingFields)

    def examination(self) -> Examination:
        """The plain value."""
        arguments = self.training_args.arguments()
        if self.max_length is not None:
            arguments = replace(arguments, max_length=self.max_length)
        return Examination(self.num_rows, self.measure, self.lora_config.settings(), arguments)
