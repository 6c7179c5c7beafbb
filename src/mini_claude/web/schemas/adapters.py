"""Adapters as the native API shows them: which version, what made it, and its parity certificate."""

from typing import Any, Self

from pydantic import BaseModel, Field

from mini_claude.data.records import AdapterVersion


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
        description="How far trainer, engine and exports agree on held-out tokens; null: never measured."
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


class AdapterList(BaseModel):
    """All versions by model, name and version."""

    adapters: list[AdapterPublic]
