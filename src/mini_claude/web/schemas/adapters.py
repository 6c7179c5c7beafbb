"""Adapters as the native API shows them: which version, what made it, and its parity certificate."""

from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field

from mini_claude.data.records import AdapterVersion
from mini_claude.runtime.adapter_requests import ExportFormat
from mini_claude.types import GGUFType
from mini_claude.web.schemas.sampling import WireModel

_FILE = {"type": "string", "format": "binary"}
IMPORT_FORM = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["config", "weights", "name"],
                    "properties": {
                        "config": _FILE | {"description": "PEFT's adapter_config.json, of a LoRA adapter."},
                        "weights": _FILE | {"description": "PEFT's adapter_model.safetensors."},
                        "name": {
                            "type": "string",
                            "pattern": "^[a-z0-9_-][a-z0-9._-]{0,63}$",
                            "description": "What the adapter is called.",
                        },
                        "model": {"type": "string", "description": "The base model; left out: the default one."},
                    },
                }
            }
        },
    }
}


class AdapterPublic(BaseModel):
    """One version of an adapter."""

    reference: str = Field(description="The model to ask for: model:adapter@version.")
    model: str = Field(description="The base model.")
    name: str
    version: int
    job_id: str | None = Field(description="The training job that made it.")
    facts: dict[str, Any] = Field(
        description="Base revision, hash of the data, arguments, metrics and versions of packages."
    )
    certificate: dict[str, Any] | None = Field(
        description="How far trainer, engine and exports agree, on held-out tokens or, for an imported adapter, on "
        "those of the demonstration; null: never measured."
    )
    created_at: float

    @classmethod
    def of(cls, version: AdapterVersion) -> Self:
        """From the plain value."""
        return cls(
            reference=version.reference,
            model=version.model,
            name=version.name,
            version=version.version,
            job_id=version.job_id,
            facts=version.facts,
            certificate=version.certificate,
            created_at=version.created_at,
        )


class ExportOrder(WireModel):
    """Body of POST .../export."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"format": "gguf"}]})

    format: ExportFormat = Field(
        "peft",
        description="peft: the adapter for PEFT, merged: a whole model for transformers (both as .zip); "
        "gguf: the adapter, gguf-merged: a whole model, for llama.cpp.",
    )
    tensor_type: GGUFType = Field("f16", description="Of the matrices in a gguf-merged file.")


class AdapterList(BaseModel):
    """All versions by model, name and version."""

    adapters: list[AdapterPublic]
