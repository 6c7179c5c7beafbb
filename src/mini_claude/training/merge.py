"""A tuned model as a folder that plain `transformers` loads: the adapter merged into the base's weights."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import torch

from mini_claude.models.model_files import DOWNLOAD_PATTERNS, load_json_object
from mini_claude.models.weight_files import TensorInfo
from mini_claude.training.complete_folder import complete_folder
from mini_claude.training.merged_weights import MergedWeights

COPIED_FILES: Final = tuple(name for name in DOWNLOAD_PATTERNS if ".safetensors" not in name and name != "config.json")
_ELEMENT_BYTES: Final = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I16": 2}  # others: 1


def merge_adapter(base_folder: Path, adapter_folder: Path, target_folder: Path) -> None:
    """Write the merged model with the base's tokenizer, configuration and chat template.

    Memory: about twice the largest tensor. Tensors that the adapter changes become float32; the others are copied
    byte for byte. `target_folder` appears complete or not at all. Raises `UnsafeModelFile` or `ModelLoadError` for
    the folders, `Conflict` where the target exists, `StorageError`.
    """
    weights = MergedWeights(base_folder, adapter_folder)
    config = load_json_object(base_folder / "config.json")
    for level in (config, config.get("text_config", config)):
        level.pop("torch_dtype", None)
        level["dtype"] = "float32"
        if weights.unties:
            level["tie_word_embeddings"] = False
    with complete_folder(target_folder) as part:
        for name in COPIED_FILES:
            if (base_folder / name).is_file():
                shutil.copyfile(base_folder / name, part / name)
        (part / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        _write_safetensors(part / "model.safetensors", weights)


def _write_safetensors(path: Path, weights: MergedWeights) -> None:
    """Header and then tensor by tensor, which the library's own function would want all at once."""
    header = _safetensors_header(weights.tensors)
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little"))
        file.write(header)
        for name in weights.tensors:
            tensor = weights.read(name)
            file.write(tensor.reshape(-1).view(torch.uint8).numpy().data)


def _safetensors_header(tensors: Mapping[str, TensorInfo]) -> bytes:
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, tensor in tensors.items():
        end = position + tensor.num_elements * _ELEMENT_BYTES.get(tensor.dtype, 1)
        entries[name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [position, end]}
        position = end
    header = json.dumps(entries).encode()
    return header + b" " * (-len(header) % 8)
