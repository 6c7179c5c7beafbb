"""Checkpoints: folders from which a run goes on. One that is there is complete, whatever ended the process.

    checkpoints/step-00000120/    weights.safetensors      what is trained, by name
                                  optimizer.safetensors    AdamW's moments
                                  state.json               step, RNG states, evaluations, what the run is
                                  manifest.json            SHA-256 and size of each of these

A checkpoint is written beside its place, every file flushed to the disk, and renamed into it. It is read only if every
file has the hash that the manifest has, else the one before it is read. Nothing here can execute code: no pickles.
"""

import hashlib
import json
import shutil
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from mini_claude.errors import StorageError
from mini_claude.training.complete_folder import complete_folder
from mini_claude.training.tensor_file import write_tensors

MANIFEST: Final = "manifest.json"
_WEIGHTS: Final = "weights.safetensors"
_OPTIMIZER: Final = "optimizer.safetensors"
_STATE: Final = "state.json"
_VERSION: Final = 1

Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Everything that a run needs to go on as if it had never stopped. Tensors are on the CPU when it was loaded."""

    step: int
    weights: Tensors
    optimizer: Tensors
    state: Mapping[str, Any]  # JSON

    @property
    def num_bytes(self) -> int:
        """Of its tensors; the rest is small."""
        return sum(tensor.nbytes for tensors in (self.weights, self.optimizer) for tensor in tensors.values())


@dataclass(frozen=True, slots=True)
class DamagedCheckpoint:
    """A checkpoint that was passed over when loading, and why."""

    folder: Path
    reason: str


class CheckpointStore:
    """The checkpoints of one run, in a folder of their own."""

    def __init__(self, folder: Path, *, keep_last: int, max_bytes: int) -> None:
        """The last `keep_last` are kept and the best one, but never more than `max_bytes` together."""
        self._folder = folder
        self._keep_last = max(1, keep_last)
        self._max_bytes = max_bytes

    def save(self, checkpoint: Checkpoint, best_step: int | None) -> Path:
        """Write it, then remove what is no longer kept; `best_step` is the step of the best evaluation so far.

        Room is made before writing; the newest checkpoint that is there stays until the new one is complete. Raises
        `StorageError`: code "disk_full", or "checkpoint_too_large" where two do not fit into the bound.
        """
        target = self._path(checkpoint.step)
        if target.exists():  # the run came by here before and went back further, as this one is damaged
            self._remove(checkpoint.step)
        self._make_room(checkpoint.num_bytes, best_step)
        with complete_folder(target) as part:
            digests = {
                _WEIGHTS: write_tensors(part / _WEIGHTS, checkpoint.weights),
                _OPTIMIZER: write_tensors(part / _OPTIMIZER, checkpoint.optimizer),
            }
            state = json.dumps(checkpoint.state).encode()
            (part / _STATE).write_bytes(state)
            digests[_STATE] = hashlib.sha256(state).hexdigest()
            files = {name: {"sha256": value, "bytes": (part / name).stat().st_size} for name, value in digests.items()}
            manifest = {"version": _VERSION, "step": checkpoint.step, "files": files}
            (part / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
        self._remove_old(best_step)
        return target

    def load_newest(self) -> tuple[Checkpoint | None, list[DamagedCheckpoint]]:
        """The newest checkpoint whose files are as they were written, and those that were newer but are not."""
        damaged: list[DamagedCheckpoint] = []
        for step in reversed(self.steps()):
            try:
                return self.load(step), damaged
            except StorageError as error:
                damaged.append(DamagedCheckpoint(self._path(step), error.message))
        return None, damaged

    def load(self, step: int) -> Checkpoint:
        """The checkpoint of that step. Raises `StorageError` (code "checkpoint_damaged") unless it is intact."""
        folder = self._path(step)
        try:
            if folder.is_symlink():
                raise ValueError("it is a link")
            for name in (MANIFEST, _WEIGHTS, _OPTIMIZER, _STATE):
                if not stat.S_ISREG((folder / name).lstat().st_mode):  # opening a pipe would never return
                    raise ValueError(f"{name} is no regular file")
            manifest = json.loads((folder / MANIFEST).read_bytes())
            if manifest["version"] != _VERSION or manifest["step"] != step:
                raise ValueError("its manifest is of another version or step")
            for name in (_WEIGHTS, _OPTIMIZER, _STATE):
                if _sha256(folder / name) != manifest["files"][name]["sha256"]:
                    raise ValueError(f"{name} was changed after it was written")
            state = json.loads((folder / _STATE).read_bytes())
            if not isinstance(state, dict):
                raise ValueError(f"{_STATE} is no JSON object")
            return Checkpoint(step, load_file(folder / _WEIGHTS), load_file(folder / _OPTIMIZER), state)
        except (OSError, ValueError, KeyError, TypeError, RecursionError, SafetensorError) as error:
            raise StorageError(f"{folder} is damaged: {error}.", code="checkpoint_damaged") from error

    def steps(self) -> list[int]:
        """Of all checkpoints that are there, intact or not, in rising order."""
        names = (path.name.removeprefix("step-") for path in self._folder.glob("step-*"))
        return sorted(int(name) for name in names if name.isdecimal())

    def _path(self, step: int) -> Path:
        return self._folder / f"step-{step:08}"

    def _make_room(self, needed: int, best_step: int | None) -> None:
        steps = self.steps()
        sizes = {step: sum(path.stat().st_size for path in self._path(step).iterdir()) for step in steps}
        expendable = [*(step for step in steps[:-1] if step != best_step), *(s for s in steps[:-1] if s == best_step)]
        while sum(sizes.values()) + needed > self._max_bytes and expendable:
            self._remove(expendable[0])
            del sizes[expendable.pop(0)]
        if sum(sizes.values()) + needed > self._max_bytes:
            raise StorageError(
                f"A checkpoint of {needed:,} bytes beside the one before it is over max_checkpoint_bytes, "
                f"{self._max_bytes:,}; allow more.",
                code="checkpoint_too_large",
            )

    def _remove_old(self, best_step: int | None) -> None:
        for step in self.steps()[: -self._keep_last]:
            if step != best_step:
                self._remove(step)

    def _remove(self, step: int) -> None:
        """First the manifest: a folder that is half gone must not look like a checkpoint."""
        (self._path(step) / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(self._path(step))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
