"""Which files a model folder may hold: weights that are only numbers, text, and nothing that loading could execute.

Everything is checked before any library opens the folder. Knows no torch and no transformers.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from mini_claude.errors import ModelLoadError, UnsafeModelFile
from mini_claude.models.weight_files import TensorInfo, read_gguf_header, read_safetensors_header

# What a download brings along. Everything else stays where it is.
DOWNLOAD_PATTERNS: Final = (
    *("*.safetensors", "model.safetensors.index.json", "config.json", "generation_config.json", "tokenizer.json"),
    *("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt"),
    *("vocab.txt", "tokenizer.model", "chat_template.jinja", "chat_template.json"),
)
_REFUSED_SUFFIXES: Final = frozenset(
    {
        *(".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".h5", ".hdf5", ".keras", ".msgpack", ".pb"),
        *(".npy", ".npz", ".nemo", ".mar", ".ot", ".dill", ".py", ".pyc", ".pyd", ".pyw", ".pth", ".so", ".dll"),
        *(".dylib", ".exe", ".sh", ".bat", ".ps1", ".js", ".jar", ".whl", ".egg", ".zip", ".tar", ".gz", ".tgz"),
    }
)
_ARCHIVE_MAGIC: Final = (b"PK\x03\x04", *(bytes([0x80, version]) for version in range(2, 6)))  # zip; pickle 2 to 5
_MAX_JSON_BYTES: Final = 200_000_000
_TOKENIZER_FILES: Final = ("tokenizer.json", "tokenizer.model", "vocab.json")


def check_model_folder(folder: Path) -> dict[str, TensorInfo]:
    """The tensors of a model folder that is complete and safe to load.

    Raises `UnsafeModelFile` for anything that could execute or lead elsewhere, `ModelLoadError` for what is
    missing or damaged.
    """
    if not folder.is_dir():
        raise ModelLoadError(f"{folder} is not a folder; register the folder that holds the model's config.json.")
    check_files(folder)
    config = folder / "config.json"
    if not config.is_file():
        hint = "register the .gguf file itself" if any(folder.glob("*.gguf")) else "restore it"
        raise ModelLoadError(f"{folder} has no config.json; {hint}.")
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        raise ModelLoadError(f"{folder} has no tokenizer; add tokenizer.json from where the model came from.")
    return _check_weights(folder)


def check_files(folder: Path) -> None:
    """Raise `UnsafeModelFile` or `ModelLoadError` for the first file that no folder of weights may hold."""
    for path in _files(folder):
        _check_file(path)
    for path in folder.rglob("*.json"):
        _check_json(path, load_json(path))


def load_json(path: Path) -> Any:
    """The value in a JSON file. Raises `ModelLoadError`."""
    try:
        if path.stat().st_size > _MAX_JSON_BYTES:
            raise ValueError("it is too large")
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ModelLoadError(f"{path} cannot be read ({error}); restore it from where the model came from.") from error


def load_json_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises `ModelLoadError`."""
    value = load_json(path)
    if not isinstance(value, dict):
        raise ModelLoadError(f"{path} holds no JSON object; restore it from where the model came from.")
    return value


def _files(folder: Path) -> Iterator[Path]:
    """All files below `folder`. Raises `UnsafeModelFile` for links that leave it and for what is no plain file."""
    root = folder.resolve()
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(parent, name)
            if not path.resolve().is_relative_to(root):
                raise UnsafeModelFile(f"{path} is a link out of the model's folder; replace it by the file itself.")
            if not (path.is_file() or path.is_dir()):
                raise UnsafeModelFile(f"{path} is no plain file (or a dead link); remove it.")
        yield from (Path(parent, name) for name in files)


def _check_file(path: Path) -> None:
    suffixes = {suffix.lower() for suffix in path.suffixes}
    with path.open("rb") as file:
        # A safetensors file begins with its header's length, which may be any number; its header is checked below.
        packed = path.suffix != ".safetensors" and file.read(4).startswith(_ARCHIVE_MAGIC)
    if refused := sorted(suffixes & _REFUSED_SUFFIXES) or packed:
        kind = "/".join(refused) if isinstance(refused, list) else "a pickle or an archive"
        raise UnsafeModelFile(
            f"{path} could execute code when it is loaded ({kind}); keep only safetensors, JSON and tokenizer files "
            "in the folder."
        )
    if path.suffix == ".safetensors":
        read_safetensors_header(path)
    elif path.suffix == ".gguf":
        read_gguf_header(path)


def _check_json(path: Path, value: Any) -> None:
    """Raises `UnsafeModelFile` where the JSON would make a library import code or open another file."""
    pending = [value]
    while pending:
        value = pending.pop()
        if isinstance(value, list):
            pending += (item for item in value if isinstance(item, (list, dict)))
        elif isinstance(value, dict):
            # In a vocabulary these words may be tokens, whose values are numbers.
            if isinstance(value.get("auto_map"), (dict, list, str)) or value.get("trust_remote_code") is True:
                raise UnsafeModelFile(
                    f"{path} asks for Python code of its own (auto_map or trust_remote_code), which is never run; "
                    "choose a model that transformers supports by itself."
                )
            if isinstance(value.get("transformers_weights"), str):
                raise UnsafeModelFile(f"{path} names another weights file (transformers_weights); remove that line.")
            pending += (item for item in value.values() if isinstance(item, (list, dict)))


def _check_weights(folder: Path) -> dict[str, TensorInfo]:
    index = folder / "model.safetensors.index.json"
    shards = {"model.safetensors"}
    if index.exists():
        weight_map = load_json_object(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise ModelLoadError(f"{index} has no weight_map; restore it from where the model came from.")
        shards = set(map(str, weight_map.values()))
    tensors: dict[str, TensorInfo] = {}
    for shard in sorted(shards):
        if Path(shard).name != shard or not shard.endswith(".safetensors") or "\0" in shard:
            raise UnsafeModelFile(f"{index} names the file {shard!r}, which is no safetensors file of this folder.")
        if not (folder / shard).is_file():
            raise ModelLoadError(f"{folder} lacks {shard}; copy it from where the model came from.")
        tensors |= read_safetensors_header(folder / shard)
    return tensors
