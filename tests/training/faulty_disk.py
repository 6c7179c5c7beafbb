"""A disk on which the k-th operation that writes finds no room."""

import builtins
import errno
import io
import os
from pathlib import Path
from typing import Any, Self

import pytest


class FaultyDisk:
    """Counts writes, flushes, new folders and renames below `folder`; the `fails_at`-th (from 1) raises ENOSPC.

    What native code writes to a descriptor of its own (safetensors, SQLite) is not seen.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path, fails_at: int | None) -> None:
        self.num_operations = 0
        self._folder = folder
        self._fails_at = fails_at
        real_open, real_fsync, real_sendfile = open, os.fsync, os.sendfile
        real_mkdir, real_rename, real_replace = Path.mkdir, Path.rename, Path.replace

        def open_(path: Any, mode: str = "r", *rest: Any, **named: Any) -> Any:
            file = real_open(path, mode, *rest, **named)
            return _FaultyFile(file, self) if self._is_ours(path) and set(mode) & set("wax+") else file

        def sendfile(*arguments: Any, **named: Any) -> int:  # by which shutil copies
            self.operate()
            return real_sendfile(*arguments, **named)

        def fsync(descriptor: int) -> None:
            self.operate()
            real_fsync(descriptor)

        def mkdir(path: Path, *rest: Any, **named: Any) -> None:
            if self._is_ours(path):
                self.operate()
            real_mkdir(path, *rest, **named)

        def rename(path: Path, target: Path) -> Path:
            self.operate()
            return real_rename(path, target)

        def replace(path: Path, target: Path) -> Path:
            self.operate()
            return real_replace(path, target)

        monkeypatch.setattr(io, "open", open_)  # pathlib's and zipfile's
        monkeypatch.setattr(builtins, "open", open_)
        monkeypatch.setattr(os, "sendfile", sendfile)
        monkeypatch.setattr(os, "fsync", fsync)
        monkeypatch.setattr(Path, "mkdir", mkdir)
        monkeypatch.setattr(Path, "rename", rename)
        monkeypatch.setattr(Path, "replace", replace)

    def operate(self) -> None:
        self.num_operations += 1
        if self.num_operations == self._fails_at:
            raise OSError(errno.ENOSPC, "No space left on device")

    def _is_ours(self, path: Any) -> bool:
        return isinstance(path, (str, os.PathLike)) and Path(path).is_relative_to(self._folder)


class _FaultyFile:
    def __init__(self, file: Any, disk: FaultyDisk) -> None:
        self._file = file
        self._disk = disk

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, data: Any) -> int:
        self._disk.operate()
        return int(self._file.write(data))

    def flush(self) -> None:
        self._disk.operate()
        self._file.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)
