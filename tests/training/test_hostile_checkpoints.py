"""Checkpoints that somebody made, with hashes that are right: nothing in them runs, leads elsewhere or stops a job.

Such a folder may come with a data directory that was restored from elsewhere.
"""

import hashlib
import json
import os
import pickle
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from .test_checkpoint import FILES, checkpoint, newest, store

WEIGHTS, OPTIMIZER, STATE, MANIFEST = FILES
Mutation = Callable[[Path, Path], None]  # of a checkpoint's folder; the canary is what must not come to be


class Payload:
    """Unpickling this creates the canary."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.canary,)


def sign(folder: Path, **changes: object) -> None:
    """A manifest that fits the files as they are now."""
    files = {name: {"sha256": hashlib.sha256((folder / name).read_bytes()).hexdigest()} for name in FILES[:3]}
    manifest = {"version": 1, "step": 2, "files": files, **changes}
    (folder / MANIFEST).write_text(json.dumps(manifest))


def content(name: str, data: bytes) -> Mutation:
    def mutate(folder: Path, canary: Path) -> None:
        (folder / name).write_bytes(data)
        sign(folder)

    return mutate


def pickled(name: str) -> Mutation:
    def mutate(folder: Path, canary: Path) -> None:
        (folder / name).write_bytes(pickle.dumps(Payload(canary)))
        sign(folder)

    return mutate


def archived(name: str) -> Mutation:
    def mutate(folder: Path, canary: Path) -> None:
        with zipfile.ZipFile(folder / name, "w") as archive:
            archive.writestr("archive/data.pkl", pickle.dumps(Payload(canary)))
        sign(folder)

    return mutate


def manifest(data: bytes) -> Mutation:
    def mutate(folder: Path, canary: Path) -> None:
        (folder / MANIFEST).write_bytes(data)

    return mutate


def signed(**changes: object) -> Mutation:
    return lambda folder, canary: sign(folder, **changes)


def linked(name: str) -> Mutation:
    """The same content, but elsewhere."""

    def mutate(folder: Path, canary: Path) -> None:
        shutil.move(folder / name, folder.parent.parent / name)
        (folder / name).symlink_to(folder.parent.parent / name)

    return mutate


def pipe(name: str) -> Mutation:
    def mutate(folder: Path, canary: Path) -> None:
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return mutate


def linked_folder(folder: Path, canary: Path) -> None:
    shutil.move(folder, folder.parent.parent / "elsewhere")
    folder.symlink_to(folder.parent.parent / "elsewhere")


def header(text: str, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(text) if length is None else length) + text.encode()


DEEP = b"[" * 200_000
TENSOR = '{"a":{"dtype":"%s","shape":%s,"data_offsets":%s}}'
HOSTILE: dict[str, Mutation] = {
    "weights are a pickle": pickled(WEIGHTS),
    "moments are a pickle": pickled(OPTIMIZER),
    "state is a pickle": pickled(STATE),
    "manifest is a pickle": manifest(pickle.dumps("manifest")),
    "weights are a torch archive": archived(WEIGHTS),
    "moments are a torch archive": archived(OPTIMIZER),
    "state is an archive": archived(STATE),
    "weights are a link": linked(WEIGHTS),
    "moments are a link": linked(OPTIMIZER),
    "state is a link": linked(STATE),
    "manifest is a link": linked(MANIFEST),
    "the folder is a link": linked_folder,
    "weights are a pipe": pipe(WEIGHTS),
    "moments are a pipe": pipe(OPTIMIZER),
    "state is a pipe": pipe(STATE),
    "manifest is a pipe": pipe(MANIFEST),
    "state nests without end": content(STATE, DEEP),
    "manifest nests without end": manifest(DEEP),
    "state is a list": content(STATE, b"[]"),
    "state is a number": content(STATE, b"1"),
    "state is null": content(STATE, b"null"),
    "state is no text": content(STATE, b"\xff\xfe\x00"),
    "manifest is a list": manifest(b"[]"),
    "manifest is null": manifest(b"null"),
    "manifest names other files": signed(files={"../../etc/passwd": {"sha256": ""}}),
    "manifest lists files": signed(files=["weights.safetensors"]),
    "hashes are no texts": signed(files={key: {"sha256": None} for key in FILES}),
    "of another version": signed(version=2),
    "of another step": signed(step=10**30),
    "header longer than the file": content(WEIGHTS, header("{}", 10**18)),
    "header that is no JSON": content(WEIGHTS, header("__import__('os')")),
    "header that nests without end": content(WEIGHTS, header('{"a":' + "[" * 100_000)),
    "tensor beyond the file": content(WEIGHTS, header(TENSOR % ("F32", "[1000000]", "[0,4000000]"))),
    "tensor before the file": content(WEIGHTS, header(TENSOR % ("F32", "[1]", "[-4,0]"))),
    "tensor larger than any memory": content(WEIGHTS, header(TENSOR % ("F32", "[4611686018427387904]", "[0,0]"))),
    "tensor of objects": content(WEIGHTS, header(TENSOR % ("OBJECT", "[1]", "[0,8]")) + b"8 bytes."),
    "nothing at all": content(WEIGHTS, b""),
}  # fmt: skip


@pytest.mark.timeout(60)  # a pipe would be waited for
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_checkpoint_is_passed_over_and_nothing_runs(tmp_path: Path, name: str) -> None:
    folder, canary = tmp_path / "checkpoints", tmp_path / "canary"
    for step in (1, 2):
        store(folder).save(checkpoint(step), best_step=None)
    sign(folder / "step-00000002")
    assert newest(folder) == 2
    HOSTILE[name](folder / "step-00000002", canary)
    assert newest(folder) == 1
    assert not canary.exists()


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "optimizer.pt", "rng_state.pth", "modeling.py", "sitecustomize.py"]
)
def test_what_does_not_belong_to_a_checkpoint_is_never_read(tmp_path: Path, name: str) -> None:
    folder, canary = tmp_path / "checkpoints", tmp_path / "canary"
    store(folder).save(checkpoint(2), best_step=None)
    code = f"import pathlib; pathlib.Path({str(canary)!r}).touch()".encode()
    (folder / "step-00000002" / name).write_bytes(code if name.endswith(".py") else pickle.dumps(Payload(canary)))
    assert newest(folder) == 2
    assert not canary.exists()
