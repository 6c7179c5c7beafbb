"""The files of adapters: one folder for each version, complete or not there at all, named by its row in the database.

A trainer puts the folders of its jobs here itself; those of imported adapters come through a scratch folder, and so do
exports, which nobody keeps.
"""

import uuid
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mini_claude.data.scratch_folder import ScratchFolder, locked, remove_abandoned, remove_folder
from mini_claude.errors import NotFound, PayloadTooLarge
from mini_claude.utils.files import storage_errors, sync

_IMPORTED: Final = "import-"


@dataclass(frozen=True, slots=True)
class IncomingFile:
    """A file that may come, and how large it may be."""

    name: str
    max_bytes: int


class IncomingAdapter:
    """An adapter on its way in. Blocking, and for one thread at a time."""

    def __init__(self, scratch: ScratchFolder, files: Mapping[str, IncomingFile]) -> None:
        """`files` by what the client calls them. All of them exist, empty, from the start."""
        self._scratch = scratch
        self._files = files
        self._num_bytes = dict.fromkeys(files, 0)
        self.folder = scratch.path / "incoming"
        self.checked_folder = scratch.path / "checked"  # to be made by whoever has checked `folder`
        self.folder.mkdir(0o700)
        for file in files.values():
            (self.folder / file.name).touch(0o600)

    def write(self, part: str, data: bytes) -> None:
        """Append to a file. Raises `PayloadTooLarge` and `StorageError`."""
        file = self._files[part]
        self._num_bytes[part] += len(data)
        if self._num_bytes[part] > file.max_bytes:
            raise PayloadTooLarge(f"{file.name} is larger than {file.max_bytes} bytes.", param=part)
        with storage_errors(self._scratch.path.parent), (self.folder / file.name).open("ab") as opened:
            opened.write(data)

    def discard(self) -> None:
        """Leave nothing behind; does nothing to what was kept."""
        self._scratch.discard()


class AdapterStore:
    """All adapter folders of one data directory; `quota_bytes` bounds the imported ones together."""

    def __init__(self, folder: Path, quota_bytes: int) -> None:
        self._folder = folder
        self._quota_bytes = quota_bytes

    def path(self, name: str) -> Path:
        """The folder of a version, by what its row calls it. Raises `NotFound`."""
        path = self._folder / name
        if not path.is_dir():
            raise NotFound(
                "The adapter's files are gone; import it again, or train it again.", code="adapter_files_missing"
            )
        return path

    def scratch(self) -> ScratchFolder:
        """A folder for work, to be discarded by the caller. Raises `StorageError`."""
        with locked(self._folder), storage_errors(self._folder):
            remove_abandoned(self._folder)
            return ScratchFolder(self._folder)

    def begin(self, files: Mapping[str, IncomingFile]) -> IncomingAdapter:
        """A new adapter of these files, to be discarded by the caller. Raises `StorageError`."""
        scratch = self.scratch()
        try:
            with storage_errors(self._folder):
                return IncomingAdapter(scratch, files)
        except BaseException:
            scratch.discard()
            raise

    def check_quota(self, num_bytes: int) -> None:
        """Raise `PayloadTooLarge` where the imported adapters and so many bytes are more than the quota."""
        stored = sum(_size(folder) for folder in self._folder.glob(f"{_IMPORTED}*"))
        if stored + num_bytes > self._quota_bytes:
            raise PayloadTooLarge(
                f"All imported adapters together may have {self._quota_bytes} bytes (adapter_quota_bytes), and this "
                f"one would make it {stored + num_bytes}: delete some first.",
                code="adapter_quota_exceeded",
                param="weights",
            )

    @contextmanager
    def kept(self, incoming: IncomingAdapter, known: Callable[[], Collection[str]]) -> Iterator[str]:
        """Keep a checked adapter under a new name, which the block registers; taken back when the block raises.

        `known` tells the names of all registered folders: an imported one that is not among them was left by a
        process that was killed in this block. Raises `PayloadTooLarge` for the quota, `StorageError`.
        """
        with locked(self._folder):
            registered = known()
            for folder in self._folder.glob(f"{_IMPORTED}*"):
                if folder.name not in registered:
                    self.remove(folder.name)
            self.check_quota(_size(incoming.checked_folder))
            name = f"{_IMPORTED}{uuid.uuid4().hex}"
            with storage_errors(self._folder):
                incoming.checked_folder.rename(self._folder / name)
                sync(self._folder)
            try:
                yield name
            except BaseException:
                self.remove(name)
                raise

    def remove(self, name: str) -> None:
        """Delete a version's folder, in one step."""
        with storage_errors(self._folder), suppress(FileNotFoundError):
            remove_folder(self._folder / name)


def _size(folder: Path) -> int:
    """Bytes; of a folder that is being deleted, as many as are left."""
    num_bytes = 0
    with suppress(FileNotFoundError):
        for path in folder.iterdir():
            num_bytes += path.stat().st_size
    return num_bytes
