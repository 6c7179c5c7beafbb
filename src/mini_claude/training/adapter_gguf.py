"""An adapter as one GGUF file, which llama.cpp applies to a base model's GGUF while it runs. Knows no torch."""

from contextlib import closing
from pathlib import Path

import gguf
import numpy as np

from mini_claude.errors import UnsupportedExport
from mini_claude.models.adapter_files import tensor_name
from mini_claude.models.adapter_tensors import read_adapter_tensors
from mini_claude.models.gguf_array import GGUFArray
from mini_claude.training.adapter_folder import check_adapter
from mini_claude.training.complete_folder import complete_file
from mini_claude.training.gguf_layout import GGUFLayout


def write_adapter_gguf(base_folder: Path, adapter_folder: Path, target: Path) -> None:
    """Write the adapter in float32; `target` appears complete or not at all.

    llama.cpp scales every layer by alpha / r with one alpha for all, so B takes up what a layer's own scale (ranks,
    alphas or rsLoRA) leaves over. Raises `UnsupportedExport` for DoRA, which the format does not have, and for
    architectures without a known layout; `UnsafeModelFile`, `ModelLoadError`, `StorageError`.
    """
    files = check_adapter(adapter_folder, base_folder)
    if files.config.use_dora:
        raise UnsupportedExport(
            "A DoRA adapter cannot be written as an adapter GGUF, which has no magnitudes; export the merged model "
            "instead, as GGUF or as safetensors."
        )
    layout = GGUFLayout(base_folder)
    first = next(iter(files.layers))
    alpha = files.config.scale(first) * files.config.rank(first)
    with complete_file(target) as part, closing(gguf.GGUFWriter(part, layout.architecture)) as writer:
        writer.add_type(gguf.GGUFType.ADAPTER)
        writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
        writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
        tensors = read_adapter_tensors(adapter_folder)
        for layer in files.layers:
            name = layout.name(f"{layer}.weight")
            if name is None:
                raise UnsupportedExport(f"llama.cpp has no name for {layer}; export the merged safetensors instead.")
            a = tensors[tensor_name(layer, "lora_A")]
            b = layout.rows(layer, tensors[tensor_name(layer, "lora_B")])
            rest = np.float32(files.config.scale(layer) / (alpha / files.config.rank(layer)))
            writer.add_tensor(f"{name}.lora_a", GGUFArray.of(a))
            writer.add_tensor(f"{name}.lora_b", GGUFArray.of(b * rest))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.flush()
