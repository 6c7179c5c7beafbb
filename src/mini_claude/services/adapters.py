"""Adapters by their references, model:name@version, and what stands behind one."""

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from anyio.to_thread import run_sync

from mini_claude.data.adapters import AdapterRepository
from mini_claude.data.records import AdapterVersion
from mini_claude.errors import InvalidRequest, NotFound
from mini_claude.services.catalog import Catalog
from mini_claude.services.identity import Caller
from mini_claude.types import AdapterRef, ModelSpec
from mini_claude.utils.config import Settings

_REFERENCE: Final = re.compile(r"(?P<name>[^@:]{1,64})(@(?P<version>[1-9][0-9]{0,8}))?")


@dataclass(frozen=True, slots=True)
class ServedModel:
    """What answers a request: a model, or an adapter on it."""

    spec: ModelSpec
    adapter: AdapterRef | None = None

    @property
    def name(self) -> str:
        """What clients call it; an adapter's always with its version."""
        return self.spec.name if self.adapter is None else self.adapter.name


class AdapterService:
    """The versions of all adapters. Their files lie in folders that no client names."""

    def __init__(self, repository: AdapterRepository, catalog: Catalog, settings: Settings) -> None:
        self._repository = repository
        self._catalog = catalog
        self._settings = settings

    async def resolve(self, name: str | None) -> ServedModel:
        """What a model reference names: model, model:adapter (its newest version) or model:adapter@version.

        Raises `NotFound`.
        """
        base, colon, _ = (name or "").partition(":")
        spec = await self._catalog.resolve(base or None)
        if not colon:
            return ServedModel(spec)
        version = await self.find(name or "")
        return ServedModel(spec, AdapterRef(version.reference, str(self._settings.adapters_dir / version.folder)))

    async def find(self, reference: str) -> AdapterVersion:
        """The version that a reference with an adapter names. Raises `NotFound`."""
        base, _, rest = reference.partition(":")
        parts = _REFERENCE.fullmatch(rest)
        if parts is None:
            raise NotFound(
                f"{reference[:80]!r} names no adapter: write model:adapter or model:adapter@version.",
                code="model_not_found",
                param="model",
            )
        number = int(parts["version"]) if parts["version"] else None
        return await run_sync(self._repository.find, self._catalog.real_name(base or None), parts["name"], number)

    async def list(self) -> Sequence[AdapterVersion]:
        """All versions by model, name and version."""
        return await run_sync(self._repository.list)

    async def remove(self, caller: Caller, reference: str) -> None:
        """Delete a version of the caller's with its files.

        Raises `NotFound`, and `InvalidRequest` for a reference without a version, which would mean whichever is newest.
        """
        version = await self.find(reference)
        if version.owner != caller.owner:
            raise NotFound(f"There is no adapter {reference!r} of yours.", code="model_not_found", param="model")
        if "@" not in reference:
            raise InvalidRequest(
                f"Say which version to delete: the newest one is {version.reference!r}.", param="reference"
            )
        await run_sync(self._repository.remove, version)
        folder = self._settings.adapters_dir / version.folder
        await run_sync(lambda: shutil.rmtree(folder, ignore_errors=True))
