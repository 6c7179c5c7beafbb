"""Datasets: taken in, checked row by row, kept by content under names, examined with a model before a job pays for it.

Reading a stranger's file and tokenising it are done in short processes of their own (runtime/short_process.py).
"""

import re
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import PurePosixPath
from typing import Any, Final

import msgspec
from anyio.to_thread import run_sync

from mini_claude.data.dataset_store import DatasetStore, IncomingDataset
from mini_claude.data.datasets import DatasetRepository
from mini_claude.data.records import Dataset
from mini_claude.errors import InvalidRequest
from mini_claude.models.catalog import valid_model_name
from mini_claude.runtime.short_process import ShortProcessEnded, ShortWork
from mini_claude.services.identity import Caller
from mini_claude.services.models import ModelService
from mini_claude.services.places import Places
from mini_claude.training.doctor_report import DoctorReport, DoctorRequest, Examination
from mini_claude.training.inspection import Inspection, InspectionRequest
from mini_claude.training.prompts import PromptsRequest, TrainingPrompt
from mini_claude.utils.config import Settings
from mini_claude.utils.threads import run_to_its_end

INSPECTION_SECONDS: Final = 120.0
EXAMINATION_SECONDS: Final = 600.0
MAX_UPLOADS: Final = 4  # at once, in one worker: each holds a file that no quota counts yet
MAX_WAITING: Final = 8  # short processes of a kind, the running one included
DEFAULT_NAME: Final = "dataset"
MAX_FILE_NAME: Final = 200
_NOT_IN_A_NAME: Final = re.compile(r"[^a-z0-9._-]+")


class DatasetService:
    """Datasets of all callers; each sees their own."""

    def __init__(self, repository: DatasetRepository, models: ModelService, settings: Settings) -> None:
        self._repository = repository
        self._store = DatasetStore(settings.datasets_dir, settings.max_dataset_bytes, settings.dataset_quota_bytes)
        self._models = models
        self._settings = settings
        self._uploads = Places(MAX_UPLOADS, "uploads")
        # One short process of a kind a worker, since each of them can fill a core.
        self._short_work = {program: ShortWork(MAX_WAITING) for program in ("inspect", "doctor", "prompts")}

    @asynccontextmanager
    async def receive(self, num_bytes: int = 0) -> AsyncIterator[IncomingDataset]:
        """A new file of about `num_bytes` to write to; it is gone after the block unless it was added.

        Its methods block. Raises `PayloadTooLarge` when it cannot fit, `Overloaded`, `StorageError`.
        """
        with self._uploads.one():
            self._store.check_quota(num_bytes)
            incoming = await run_to_its_end(self._store.begin, undo=IncomingDataset.discard)
            try:
                yield incoming
            finally:
                await run_to_its_end(incoming.discard)

    async def add(
        self, caller: Caller, incoming: IncomingDataset, file_name: str, name: str | None = None
    ) -> tuple[Dataset, bool]:
        """Check and keep what has come in, and whether it is new under that name.

        Raises `InvalidRequest` for a name that cannot be one and for a file that is no dataset, `Conflict` when the
        name has other content, `PayloadTooLarge` for the quota, `StorageError`.
        """
        name = default_name(file_name) if name is None else name
        if not valid_model_name(name):
            raise InvalidRequest(
                f"{name[:80]!r} cannot name a dataset: use up to 64 lower-case letters, digits, '.', '_' and '-', "
                "not starting with a dot.",
                param="name",
            )
        sha256 = await run_sync(incoming.finish, PurePosixPath(file_name).suffix.lower())
        manifest = await run_sync(self._store.manifest, sha256)
        inspection = await self._inspect(incoming) if manifest is None else msgspec.convert(manifest, Inspection)
        dataset = Dataset(
            name=name,
            owner=caller.owner,
            sha256=sha256,
            file_name=_shown(file_name),
            container=inspection.container,
            format=inspection.format,
            num_bytes=incoming.num_bytes,
            num_rows=inspection.num_rows,
            num_broken=inspection.num_broken,
            problems=inspection.problems,
            created_at=time.time(),
        )
        manifest = asdict(inspection) | {"sha256": sha256, "num_bytes": dataset.num_bytes}
        return await run_to_its_end(self._keep, incoming, manifest, dataset)

    async def list(self, caller: Caller) -> Sequence[Dataset]:
        """The caller's datasets by name."""
        return await run_sync(self._repository.list, caller.owner)

    async def get(self, caller: Caller, name: str) -> Dataset:
        """One dataset. Raises `NotFound`."""
        return await run_sync(self._repository.find, caller.owner, name)

    async def delete(self, caller: Caller, name: str) -> None:
        """Forget a name, and the file with its last one. Raises `NotFound`, and `Conflict` while a job uses it."""
        await run_sync(self._remove, caller.owner, name)

    async def preview(self, caller: Caller, name: str, model: str | None, wanted: Examination) -> DoctorReport:
        """What a job with this model would see of the dataset, and what it would cost.

        Raises `NotFound` (dataset, model), `Forbidden`, `ModelLoadError`, `InvalidRequest` (code
        "no_supervised_tokens") for data that teaches nothing, `Overloaded`.
        """
        dataset = await self.get(caller, name)
        spec = await self._models.usable(caller, model)
        path = await run_sync(self._store.path, dataset.sha256)
        settings: dict[str, Any] = self._settings.model_dump(
            mode="json", exclude={"database_url", "limits_url", "api_key"}
        )
        request = DoctorRequest(str(path), dataset.num_rows, spec, wanted, settings)
        try:
            answer = await self._short_work["doctor"].run("doctor", request, EXAMINATION_SECONDS)
        except ShortProcessEnded as error:
            raise InvalidRequest(
                f"The dataset cannot be examined with {spec.name!r}: {error.message}. Try a smaller max_length.",
                code="examination_failed",
            ) from error
        return msgspec.json.decode(answer, type=DoctorReport)

    async def prompts(self, caller: Caller, name: str, num_prompts: int) -> Sequence[TrainingPrompt]:
        """Questions out of the dataset, spread over its rows. Raises `NotFound`, `InvalidRequest`, `Overloaded`."""
        dataset = await self.get(caller, name)
        path = await run_sync(self._store.path, dataset.sha256)
        request = PromptsRequest(str(path), dataset.num_rows, num_prompts)
        try:
            answer = await self._short_work["prompts"].run("prompts", request, INSPECTION_SECONDS)
        except ShortProcessEnded as error:
            raise InvalidRequest(f"The dataset cannot be read: {error.message}.", code="unreadable_dataset") from error
        return msgspec.json.decode(answer, type=tuple[TrainingPrompt, ...])

    async def _inspect(self, incoming: IncomingDataset) -> Inspection:
        try:
            answer = await self._short_work["inspect"].run(
                "inspect", InspectionRequest(str(incoming.path)), INSPECTION_SECONDS
            )
        except ShortProcessEnded as error:
            raise InvalidRequest(
                f"The file cannot be read: {error.message}. Send it in smaller parts, as JSONL.",
                code="unreadable_dataset",
                param="file",
            ) from error
        return msgspec.json.decode(answer, type=Inspection)

    def _keep(self, incoming: IncomingDataset, manifest: dict[str, Any], dataset: Dataset) -> tuple[Dataset, bool]:
        with self._store.locked():
            self._store.check_quota(self._repository.stored_bytes(besides=dataset.sha256) + dataset.num_bytes)
            with self._store.kept(incoming, manifest):
                return self._repository.add(dataset)

    def _remove(self, owner: str, name: str) -> None:
        with self._store.locked():
            unused = self._repository.remove(owner, name)
            if unused is not None:
                self._store.remove(unused)


def default_name(file_name: str) -> str:
    """A valid name that resembles the file's."""
    stem = PurePosixPath(file_name.replace("\\", "/")).stem.lower()
    return _NOT_IN_A_NAME.sub("-", stem).strip("-.")[:64] or DEFAULT_NAME


def _shown(file_name: str) -> str:
    """The last part of what the client called its file, fit for storing and showing."""
    last = PurePosixPath(file_name.replace("\\", "/")).name
    return "".join(character if character.isprintable() else "?" for character in last)[:MAX_FILE_NAME]
