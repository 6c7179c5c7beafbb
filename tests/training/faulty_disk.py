"""A disk on which the k-th operation that writes finds no room."""

import errno
import os
from pathlib import Path
from typing import Any, Self

import pytest


class FaultyDisk:
    """Counts writes, flushes, new folders and renames below `folder`; the `fails_at`-th (from 1) raises ENOSPC."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path, fails_at: int | None) -> None:
        self.num_operations = 0
        self._folder = folder
        self._fails_at = fails_at
        real_open, real_fsync = Path.open, os.fsync
        real_mkdir, real_rename, real_replace = Path.mkdir, Path.rename, Path.replace

        def open_(path: Path, mode: str = "r", *rest: Any, **named: Any) -> Any:
            file = real_open(path, mode, *rest, **named)
            return _FaultyFile(file, self) if self._is_ours(path) and mode[0] in "wa" else file

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

        monkeypatch.setattr(Path, "open", open_)
        monkeypatch.setattr(os, "fsync", fsync)
        monkeypatch.setattr(Path, "mkdir", mkdir)
        monkeypatch.setattr(Path, "rename", rename)
        monkeypatch.setattr(Path, "replace", replace)

    def operate(self) -> None:
        self.num_operations += 1
        if self.num_operations == self._fails_at:
            raise OSError(errno.ENOSPC, "No space left on device")

    def _is_ours(self, path: Path) -> bool:
        return path.is_relative_to(self._folder)


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

    def fileno(self) -> int:
        return int(self._file.fileno())
