"""What is asked of the processes that work on adapters (adapter_work.py), as plain values: no numpy, no torch."""

from dataclasses import dataclass
from typing import Final, Literal

from mini_claude.types import GGUFType, MadeGGUF, ModelSpec

ExportFormat = Literal["peft", "merged", "gguf", "gguf-merged"]


SUFFIXES: Final[dict[ExportFormat, str]] = {"peft": ".zip", "merged": ".zip", "gguf": ".gguf", "gguf-merged": ".gguf"}
VERIFICATION_SECONDS: Final = 900.0


@dataclass(frozen=True, slots=True)
class Base:
    """The model that an adapter belongs to; `models_dir` is where its files are, or are unpacked to."""

    spec: ModelSpec
    models_dir: str


@dataclass(frozen=True, slots=True)
class ImportRequest:
    """`source_folder` has PEFT's two files from elsewhere; `target_folder` does not exist yet.

    Without `allow_dora`, llama.cpp serves the base, which could not run such an adapter.
    """

    base: Base
    source_folder: str
    target_folder: str
    allow_dora: bool


@dataclass(frozen=True, slots=True)
class ExportRequest:
    """`name` is what the folder in a .zip is called."""

    base: Base
    adapter_folder: str
    target: str
    format: ExportFormat
    tensor_type: GGUFType
    name: str


@dataclass(frozen=True, slots=True)
class QuantizeRequest:
    """The base's GGUF file with its weights in another type, as `target`."""

    base: Base
    target: str
    tensor_type: MadeGGUF


@dataclass(frozen=True, slots=True)
class VerifyRequest:
    """The tokens are those that training kept beside the adapter, else those of our demonstration.

    Whole models are written to `scratch_folder`, which is the caller's to empty.
    """

    base: Base
    adapter_folder: str
    scratch_folder: str
