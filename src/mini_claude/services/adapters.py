"""Adapters by their references, model:name@version: finding one, taking one in, giving one out, verifying it.

What reads a stranger's file or loads a model is done in short processes (runtime/short_process.py).
"""

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
from anyio.to_thread import run_sync

from mini_claude.data.adapter_store import AdapterStore, IncomingAdapter, IncomingFile
from mini_claude.data.adapters import AdapterRepository
from mini_claude.data.records import AdapterVersion
from mini_claude.data.scratch_folder import ScratchFolder
from mini_claude.errors import InternalError, InvalidRequest, NotFound
from mini_claude.models.adapter_files import CONFIG_FILE, WEIGHTS_FILE
from mini_claude.models.catalog import valid_model_name
from mini_claude.runtime.adapter_requests import (
    SUFFIXES,
    VERIFICATION_SECONDS,
    Base,
    ExportFormat,
    ExportRequest,
    ImportRequest,
    VerifyRequest,
)
from mini_claude.runtime.short_process import ShortProcessEnded, ShortWork
from mini_claude.services.catalog import DEFAULT_ALIAS, Catalog
from mini_claude.services.engine_choice import EngineChoice
from mini_claude.services.identity import Caller
from mini_claude.services.model_access import ModelAccess
from mini_claude.services.places import Places
from mini_claude.types import AdapterRef, GGUFType, ModelSpec
from mini_claude.utils.config import Settings
from mini_claude.utils.threads import run_to_its_end

_REFERENCE: Final = re.compile(r"(?P<name>[^@:]{1,64})(@(?P<version>[1-9][0-9]{0,8}))?")

IMPORT_SECONDS: Final = 300.0
EXPORT_SECONDS: Final = 1800.0
MAX_CONFIG_BYTES: Final = 1_048_576
MAX_UPLOADS: Final = 4  # at once, in one worker: each holds files that no quota counts yet
MAX_EXPORTS: Final = 4  # at once, in one worker: each is a whole model until it is downloaded
MAX_WAITING: Final = 4  # short processes of a kind, the running one included


@dataclass(frozen=True, slots=True)
class ServedModel:
    """What answers a request: a model, or an adapter on it."""

    spec: ModelSpec
    adapter: AdapterRef | None = None

    @property
    def name(self) -> str:
        """What clients call it; an adapter's always with its version."""
        return self.spec.name if self.adapter is None else self.adapter.name


@dataclass(frozen=True, slots=True)
class Export:
    """A file made for one download, to be closed after it; `file_name` is what the client may call it."""

    path: Path
    file_name: str
    aclose: Callable[[], Awaitable[None]]


class AdapterService:
    """The versions of all adapters. Their files lie in folders that no client names."""

    def __init__(
        self,
        repository: AdapterRepository,
        catalog: Catalog,
        engine_choice: EngineChoice,
        access: ModelAccess,
        settings: Settings,
    ) -> None:
        self._repository = repository
        self._catalog = catalog
        self._access = access
        self._engine_choice = engine_choice
        self._settings = settings
        self._store = AdapterStore(settings.adapters_dir, settings.adapter_quota_bytes)
        programs = ("import_adapter", "export_adapter", "verify_adapter")
        self._short_work = {program: ShortWork(MAX_WAITING) for program in programs}
        self._uploads = Places(MAX_UPLOADS, "uploads")
        self._exports = Places(MAX_EXPORTS, "exports")

    async def resolve(self, name: str | None) -> ServedModel:
        """What a model reference names: model, model:adapter (its newest version) or model:adapter@version.

        Who may use it is not asked here: `ModelService.serving` does. Raises `NotFound`.
        """
        if name is None or name == DEFAULT_ALIAS:
            return await self._resolve_default()
        base, colon, _ = name.partition(":")
        spec = await self._catalog.resolve(base or None)
        if not colon:
            return ServedModel(spec)
        version = await self._find(name)
        return ServedModel(spec, AdapterRef(version.reference, str(self._settings.adapters_dir / version.folder)))

    async def _resolve_default(self) -> ServedModel:
        """What was chosen; the setting's model where that has been deleted since."""
        try:
            return await self.resolve(await self._catalog.default.current())
        except NotFound:
            return await self.resolve(self._catalog.default.fallback)

    async def find(self, caller: Caller, reference: str) -> AdapterVersion:
        """The version that a reference with an adapter names. Raises `NotFound`, and `Forbidden` as for its base."""
        version = await self._find(reference)
        self._access.require_use(caller, version.model)
        return version

    async def _find(self, reference: str) -> AdapterVersion:
        base, _, rest = reference.partition(":")
        parts = _REFERENCE.fullmatch(rest)
        if parts is None:
            raise NotFound(
                f"{reference[:80]!r} names no adapter: write model:adapter or model:adapter@version.",
                code="model_not_found",
                param="model",
            )
        number = int(parts["version"]) if parts["version"] else None
        model = await self._catalog.real_name(base or None)
        return await run_sync(self._repository.find, model, parts["name"], number)

    async def list(self, caller: Caller) -> Sequence[AdapterVersion]:
        """All versions by model, name and version, without those whose base the caller may not use."""
        versions = await run_sync(self._repository.list)
        return tuple(version for version in versions if self._access.may_use(caller, version.model))

    @asynccontextmanager
    async def receive(self, num_bytes: int = 0) -> AsyncIterator[IncomingAdapter]:
        """A new adapter of about `num_bytes` to write to, its parts `config` and `weights`; gone after the block
        unless it was added.

        Its methods block. Raises `PayloadTooLarge` when it cannot fit, `Overloaded`, `StorageError`.
        """
        files = {
            "config": IncomingFile(CONFIG_FILE, MAX_CONFIG_BYTES),
            "weights": IncomingFile(WEIGHTS_FILE, self._settings.max_adapter_bytes),
        }
        with self._uploads.one():
            await run_sync(self._store.check_quota, num_bytes)
            incoming = await run_to_its_end(self._store.begin, files, undo=IncomingAdapter.discard)
            try:
                yield incoming
            finally:
                await run_to_its_end(incoming.discard)

    async def add(
        self, caller: Caller, incoming: IncomingAdapter, name: str | None, model: str | None
    ) -> AdapterVersion:
        """Check what has come in, and keep it as the next version of model:name.

        Raises `NotFound` for the model, `Forbidden` as for using it, `InvalidRequest` for a name that cannot be one and
        for files that cannot be used with the model (code "unusable_adapter"), `Conflict` for a name of another
        owner's, `ModelLoadError`, `PayloadTooLarge`, `StorageError`.
        """
        if name is None or not valid_model_name(name):
            raise InvalidRequest(
                f"{(name or '')[:80]!r} cannot name an adapter: use up to 64 lower-case letters, digits, '.', '_' and "
                "'-', not starting with a dot.",
                param="name",
            )
        base = await self._base(model)
        self._access.require_use(caller, base.spec.name)
        await run_sync(self._repository.require_free, caller.owner, base.spec.name, name)
        allow_dora = not await self._engine_choice.is_llama_cpp(base.spec)
        request = ImportRequest(base, str(incoming.folder), str(incoming.checked_folder), allow_dora)
        try:
            answer = await self._short("import_adapter", request, IMPORT_SECONDS)
        except ShortProcessEnded as error:
            raise InvalidRequest(
                f"The adapter cannot be read: {error.message}.", code="unusable_adapter", param="weights"
            ) from error
        facts: dict[str, Any] = msgspec.json.decode(answer)
        return await run_to_its_end(self._keep, incoming, caller.owner, base.spec.name, name, facts)

    async def export(
        self, caller: Caller, reference: str, wanted: ExportFormat, tensor_type: GGUFType = "f16"
    ) -> Export:
        """Write a version of the caller's to one file: PEFT's folder or the merged model packed as .zip, or a GGUF.

        Raises `NotFound`, `UnsupportedExport` for what the format cannot hold, `ModelLoadError`, `StorageError`,
        `Overloaded`, `InternalError` when the process that does it comes to no end.
        """
        version = await self._own(caller, reference)
        base = await self._base(version.model)
        folder = await run_sync(self._store.path, version.folder)
        name = f"{version.model}-{version.name}-{version.version}"
        suffix = SUFFIXES[wanted]
        async with AsyncExitStack() as stack:
            stack.enter_context(self._exports.one())
            scratch = await stack.enter_async_context(self._scratch())
            path = scratch.path / f"export{suffix}"
            request = ExportRequest(base, str(folder), str(path), wanted, tensor_type, name)
            try:
                await self._short("export_adapter", request, EXPORT_SECONDS)
            except ShortProcessEnded as error:
                raise InternalError(f"The export came to no end: {error.message}.", code="export_failed") from error
            return Export(path, f"{name}{suffix}", stack.pop_all().aclose)

    async def verify(self, caller: Caller, reference: str) -> AdapterVersion:
        """Measure a version of the caller's anew, and store its certificate, passed or not.

        Raises `NotFound`, `ModelLoadError` (code "base_changed" where the base is another one now), `Overloaded`,
        `InternalError` when the process that does it comes to no end.
        """
        version = await self._own(caller, reference)
        base = await self._base(version.model)
        folder = await run_sync(self._store.path, version.folder)
        try:
            async with self._scratch() as scratch:
                request = VerifyRequest(base, str(folder), str(scratch.path))
                answer = await self._short("verify_adapter", request, VERIFICATION_SECONDS)
        except ShortProcessEnded as error:
            raise InternalError(
                f"The parity check came to no end: {error.message}.", code="verification_failed"
            ) from error
        await run_sync(self._repository.certify, version, msgspec.json.decode(answer))
        return await self.find(caller, version.reference)

    async def remove(self, caller: Caller, reference: str) -> None:
        """Delete a version of the caller's with its files.

        Raises `NotFound`, and `InvalidRequest` for a reference without a version, which would mean whichever is newest.
        """
        version = await self._own(caller, reference)
        if "@" not in reference:
            raise InvalidRequest(
                f"Say which version to delete: the newest one is {version.reference!r}.", param="reference"
            )
        await run_sync(self._repository.remove, version)
        await run_to_its_end(self._store.remove, version.folder)

    @asynccontextmanager
    async def _scratch(self) -> AsyncIterator[ScratchFolder]:
        scratch = await run_to_its_end(self._store.scratch, undo=ScratchFolder.discard)
        try:
            yield scratch
        finally:
            await run_to_its_end(scratch.discard)

    async def _own(self, caller: Caller, reference: str) -> AdapterVersion:
        version = await self.find(caller, reference)
        if version.owner != caller.owner:
            raise NotFound(f"There is no adapter {reference!r} of yours.", code="model_not_found", param="model")
        return version

    async def _base(self, model: str | None) -> Base:
        return Base(await self._catalog.resolve(model), str(self._settings.models_dir))

    async def _short(self, program: str, request: object, seconds: float) -> bytes:
        return await self._short_work[program].run(program, request, seconds)

    def _keep(
        self, incoming: IncomingAdapter, owner: str, model: str, name: str, facts: dict[str, Any]
    ) -> AdapterVersion:
        with self._store.kept(incoming, lambda: {version.folder for version in self._repository.list()}) as folder:
            return self._repository.add(owner, model, name, folder, facts, None)
