"""Where a model's weights on this machine came from, and their hash. Knows no torch."""

import hashlib
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Final

from mini_claude.models.materialize import found_folder
from mini_claude.types import ModelOrigin, ModelSource, ModelSpec

_CHUNK_BYTES: Final = 1 << 22


def origin_of(spec: ModelSpec, models_dir: Path) -> ModelOrigin | None:
    """Of a model that is on this machine, else None. Blocking: the first time the weights are read."""
    found = found_folder(spec, models_dir)
    if found is None:
        return None
    folder, source = found
    paths = sorted(folder.glob("*.safetensors"))
    return ModelOrigin(source, _version(source), _sha256(tuple((path, path.stat().st_mtime_ns) for path in paths)))


def _version(source: ModelSource) -> str | None:
    if source.kind != "package":
        return None
    try:
        return metadata.version(source.location.partition("/")[0])
    except metadata.PackageNotFoundError:  # uninstalled since
        return None


@lru_cache(maxsize=64)
def _sha256(files: tuple[tuple[Path, int], ...]) -> str:
    """`files` with the times of their last change, so that a changed one is read again."""
    digest = hashlib.sha256()
    for path, _ in files:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
    return digest.hexdigest()
