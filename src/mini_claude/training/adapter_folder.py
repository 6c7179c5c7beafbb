"""The folder of an adapter's version: PEFT's two files and beside them mini_claude.json, what made the weights, and
held_out.json, some tokens of its data, those that training has not seen where it held any out.

An adapter from elsewhere is checked, and its configuration is written anew from the values that were understood, so
that nothing else of it gets in. Knows no torch.
"""

import hashlib
import json
import platform
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from mini_claude.errors import ModelLoadError
from mini_claude.models.adapter_files import CONFIG_FILE, WEIGHTS_FILE, AdapterFiles, check_adapter_folder
from mini_claude.models.model_files import check_model_folder, load_json_object
from mini_claude.models.weight_files import TensorInfo
from mini_claude.training.complete_folder import complete_folder
from mini_claude.training.parity import bounded

FACTS_FILE: Final = "mini_claude.json"
HELD_OUT_FILE: Final = "held_out.json"  # of somebody's data, so no export has it

_PACKAGES: Final = ("mini-claude", "torch", "transformers", "peft", "accelerate", "safetensors", "bitsandbytes")
_CHUNK_BYTES: Final = 1 << 22
# Where a number's exponent bits are all ones it is infinite or NaN.
_EXPONENTS: Final = {"F32": ("<u4", 0x7F800000), "F16": ("<u2", 0x7C00), "BF16": ("<u2", 0x7F80)}


@dataclass(frozen=True, slots=True)
class AdapterFacts:
    """Where an adapter comes from. `dataset_sha256` is None and `arguments` empty for one that was imported."""

    base_model: str
    base_revision: str  # see weights_sha256()
    dataset_sha256: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)  # versions by package


def weights_sha256(base_folder: Path) -> str:
    """SHA-256, in hexadecimal digits, of a model's weight files one after another in the order of their names."""
    return _sha256(sorted(base_folder.glob("*.safetensors")))


def adapter_sha256(folder: Path) -> str:
    """SHA-256, in hexadecimal digits, of an adapter's configuration and then its weights."""
    return _sha256([folder / CONFIG_FILE, folder / WEIGHTS_FILE])


def environment(*more_packages: str) -> dict[str, str]:
    """Versions of Python and of the packages that decide what is computed."""
    installed = {}
    for package in (*_PACKAGES, *more_packages):
        try:
            installed[package] = metadata.version(package)
        except metadata.PackageNotFoundError:  # bitsandbytes is Linux only
            continue
    return {"python": platform.python_version(), **installed}


def write_facts(folder: Path, facts: AdapterFacts) -> None:
    """Put `mini_claude.json` into an adapter's folder."""
    (folder / FACTS_FILE).write_text(json.dumps(asdict(facts), indent=2, sort_keys=True) + "\n")


def read_facts(folder: Path) -> AdapterFacts:
    """What `write_facts` wrote. Raises `ModelLoadError`."""
    values = load_json_object(folder / FACTS_FILE)
    try:
        return AdapterFacts(**values)
    except TypeError as error:
        raise ModelLoadError(f"{folder / FACTS_FILE} is not of this version of Mini-Claude: {error}.") from error


def write_held_out(folder: Path, sequences: Sequence[Sequence[int]]) -> None:
    """Keep token ids for later parity certificates, as few as one needs."""
    (folder / HELD_OUT_FILE).write_text(json.dumps(bounded(sequences)) + "\n")


def read_held_out(folder: Path) -> tuple[tuple[int, ...], ...]:
    """What `write_held_out` wrote; nothing for an imported adapter. Raises `ModelLoadError` for a damaged file."""
    path = folder / HELD_OUT_FILE
    if not path.exists():
        return ()
    try:
        return msgspec.json.decode(path.read_bytes(), type=tuple[tuple[int, ...], ...])
    except (OSError, msgspec.DecodeError) as error:
        raise ModelLoadError(f"{path} is damaged; train the adapter again.") from error


def check_adapter(folder: Path, base_folder: Path) -> AdapterFiles:
    """What is in an adapter's folder, once it is safe, complete, finite and fits the base model.

    Raises `UnsafeModelFile` or `ModelLoadError`.
    """
    files = check_adapter_folder(folder)
    base_tensors = check_model_folder(base_folder)
    for layer, parts in files.layers.items():
        _check_base(files, layer, parts, base_tensors)
    _check_finite(folder / WEIGHTS_FILE)
    return files


def import_adapter(source_folder: Path, target_folder: Path, base_folder: Path, base_model: str) -> AdapterFacts:
    """Copy an adapter that PEFT saved elsewhere to `target_folder`, which appears complete or not at all.

    Raises `UnsafeModelFile` or `ModelLoadError` for the source, `Conflict` where the target exists, `StorageError`.
    """
    files = check_adapter(source_folder, base_folder)
    facts = AdapterFacts(base_model, weights_sha256(base_folder), environment=environment())
    with complete_folder(target_folder) as part:
        shutil.copyfile(source_folder / WEIGHTS_FILE, part / WEIGHTS_FILE)
        config = json.dumps(peft_config(files, base_model), indent=2, sort_keys=True)
        (part / CONFIG_FILE).write_text(config + "\n")
        write_facts(part, facts)
        check_adapter(part, base_folder)  # the source may have changed since it was checked
    return facts


def peft_config(files: AdapterFiles, base_model: str) -> dict[str, Any]:
    """adapter_config.json with the understood values alone; the layers are named one by one where no list did."""
    config = files.config
    listed = config.target_modules if config.targets_all_layers else ()
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "bias": "none",
        "inference_mode": True,
        "r": config.r,
        "lora_alpha": config.lora_alpha,
        "lora_dropout": config.lora_dropout,
        "use_rslora": config.use_rslora,
        "use_dora": config.use_dora,
        "target_modules": list(listed or files.layers),
        "rank_pattern": dict(config.rank_pattern),
        "alpha_pattern": dict(config.alpha_pattern),
    }


def base_tensor_name(layer: str, names: Mapping[str, object]) -> str | None:
    """The weight of `layer` among a model's tensors; None where the file has none.

    Some files, GPT-2's among them, leave the first part of the name out.
    """
    for candidate in (layer, layer.partition(".")[2]):
        if f"{candidate}.weight" in names:
            return f"{candidate}.weight"
    return None


def embedding_name(names: Mapping[str, object]) -> str | None:
    """The tensor of the input embeddings, which an output layer shares that has no tensor of its own."""
    ends = ("embed_tokens.weight", "embed_in.weight", "wte.weight")
    return next((name for name in names if name.endswith(ends)), None)


def _sha256(paths: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
    return digest.hexdigest()


def _check_base(
    files: AdapterFiles, layer: str, parts: Mapping[str, TensorInfo], base_tensors: Mapping[str, TensorInfo]
) -> None:
    name = base_tensor_name(layer, base_tensors)
    if name is None and layer == "lm_head":
        name = embedding_name(base_tensors)
    if name is None:
        raise ModelLoadError(f"{files.folder} is made for another model: the base has no layer {layer}.")
    wanted = (parts["lora_B"].shape[0], parts["lora_A"].shape[1])
    if base_tensors[name].shape not in (wanted, wanted[::-1]):  # Conv1D keeps its weights the other way round
        raise ModelLoadError(
            f"{files.folder} is made for another model: its {layer} is {list(wanted)} and the base's is "
            f"{list(base_tensors[name].shape)}."
        )


def _check_finite(path: Path) -> None:
    with path.open("rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(header_bytes))
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            dtype, mask = _EXPONENTS[entry["dtype"]]
            start, stop = entry["data_offsets"]
            file.seek(8 + header_bytes + start)
            bits = np.frombuffer(file.read(stop - start), dtype)
            if ((bits & mask) == mask).any():
                raise ModelLoadError(
                    f"{path} holds numbers in {name} that are infinite or NaN; the training that made it went wrong."
                )
