"""Weights from a model folder into memory: on the right device, in the right type, and only if they fit."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import psutil
import torch
from safetensors import safe_open
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, BitsAndBytesConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from mini_claude.errors import ModelLoadError
from mini_claude.models.model_files import check_model_folder
from mini_claude.models.weight_files import TensorInfo
from mini_claude.types import LoadOptions, Quantization

# A lower bound: embeddings and norms stay in the compute type.
_QUANTIZED_BYTES: Final[Mapping[Quantization, float]] = {"int8": 1.0, "nf4": 0.5}


def load_weights(folder: Path, options: LoadOptions) -> PreTrainedModel:
    """The model in evaluation mode, without gradients.

    Raises `UnsafeModelFile` or `ModelLoadError` (code "insufficient_memory" before anything is read, or for an
    architecture that transformers does not know, or for weights that lack a part).
    """
    tensors = check_model_folder(folder)
    device = _device(options.device)
    dtype = _dtype(options, device)
    _check_memory(folder, tensors, dtype, options.quantization, device)
    _quiet_libraries()
    try:
        quantization = _quantization_config(options.quantization, dtype)
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)  # nosec B615
        model, report = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)].from_pretrained(
            None if quantization is None else folder,
            config=config,
            state_dict=_read_tensors(folder) if quantization is None else None,
            dtype=dtype,
            device_map={"": device},
            quantization_config=quantization,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
        )
    except Exception as error:  # transformers raises anything from KeyError to RuntimeError
        raise ModelLoadError(
            f"The weights in {folder} cannot be loaded: {error} Check that config.json belongs to these weights and "
            "that the installed transformers supports them."
        ) from error
    if missing := sorted(report["missing_keys"]):
        raise ModelLoadError(
            f"The weights in {folder} lack {len(missing)} tensors (the first is {missing[0]}), which would be random; "
            "copy or download the model again."
        )
    model.requires_grad_(False)
    loaded: PreTrainedModel = model.eval()
    return loaded


def _read_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """The weights in memory of their own instead of views of the mapped file.

    A mapped file stays resident as a whole while one of its tensors lives, and the engine replaces most of them by
    fused copies: that would hold the weights twice. Each tensor is read through a mapping that ends with it.
    """
    tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
        for name in names:
            with safe_open(path, framework="pt") as file:
                tensors[name] = file.get_tensor(name).clone()
    return tensors


def _device(wanted: str) -> torch.device:
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if wanted.startswith("cuda") and not torch.cuda.is_available():
        raise ModelLoadError(f"No GPU for device {wanted!r}: torch finds no CUDA; use device cpu or auto.")
    device = torch.device(wanted)
    if device.index is not None and device.index >= torch.cuda.device_count():
        raise ModelLoadError(
            f"There is no {wanted}; this machine has {torch.cuda.device_count()} GPUs, from cuda:0 on."
        )
    return device


def _dtype(options: LoadOptions, device: torch.device) -> torch.dtype:
    named = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    named["auto"] = torch.float32 if device.type == "cpu" else torch.bfloat16
    return named[options.dtype]


def _check_memory(
    folder: Path,
    tensors: Mapping[str, TensorInfo],
    dtype: torch.dtype,
    quantization: Quantization | None,
    device: torch.device,
) -> None:
    element_bytes = dtype.itemsize if quantization is None else _QUANTIZED_BYTES[quantization]
    needed = sum(tensor.num_elements for tensor in tensors.values()) * element_bytes
    if device.type == "cuda":
        available, place = torch.cuda.mem_get_info(device)[0], f"on {device}"
    else:
        available, place = psutil.virtual_memory().available, "in memory"
    if needed > available:
        raise ModelLoadError(
            f"The weights in {folder} need {needed / 1e6:,.0f} MB and {available / 1e6:,.0f} MB are free {place}; "
            "unload another model, or load this one with quantization int8 or nf4 or a smaller dtype.",
            code="insufficient_memory",
        )


def _quantization_config(quantization: Quantization | None, dtype: torch.dtype) -> BitsAndBytesConfig | None:
    if quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=6.0)
    if quantization == "nf4":
        return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
    return None


def _quiet_libraries() -> None:
    """No progress bars, and none of the line that bitsandbytes logs for every matrix product on a CPU."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
