"""Which element type a run computes in, and accelerate's view of devices and processes with it."""

from typing import Final

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import parse_flag_from_env

from mini_claude.errors import InvalidRequest
from mini_claude.training.arguments import TrainingArguments
from mini_claude.types import DTypeName

_MIXED: Final[dict[DTypeName, str]] = {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}


def compute_dtype(arguments: TrainingArguments, device: torch.device) -> DTypeName:
    """The type of matmuls; sums, losses and what is trained stay in float32. Raises `InvalidRequest`."""
    is_gpu = device.type == "cuda"
    if arguments.dtype == "auto":
        return "bfloat16" if is_gpu and torch.cuda.is_bf16_supported() else "float32"
    if arguments.dtype == "float16" and not is_gpu:
        raise InvalidRequest("Training in float16 needs a GPU; use float32 or bfloat16.", param="dtype")
    return arguments.dtype


def create_accelerator(arguments: TrainingArguments) -> Accelerator:
    """This process's device and its place among the others. The type is fixed for the life of the process.

    Raises `InvalidRequest` for a type that the device lacks.
    """
    launched_for_cpu = parse_flag_from_env("ACCELERATE_USE_CPU")  # by `accelerate launch --cpu`
    dtype = compute_dtype(arguments, PartialState(cpu=launched_for_cpu).device)
    return Accelerator(mixed_precision=_MIXED[dtype])
