"""What the machine offers to a model."""

import ctypes
import sys
from pathlib import Path

from mini_claude.types import GpuMemory, LoadOptions

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h: bytes free at the heap's end, bytes of one piece


def gpu_memory() -> tuple[GpuMemory, ...]:
    """Memory of every CUDA device that torch sees, as its driver reports it; empty without one."""
    import torch

    if not torch.cuda.is_available():
        return ()
    memory = []
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        memory.append(GpuMemory(index, torch.cuda.get_device_name(index), total - free, total))
    return tuple(memory)


def has_gpu() -> bool:
    """Whether torch would find a GPU; torch itself is not imported, which takes seconds, where there is no driver."""
    if not has_gpu_driver():
        return False
    import torch

    return torch.cuda.is_available()


def has_gpu_driver() -> bool:
    """Whether there may be a GPU. Imports no torch."""
    drivers = "/dev/nvidiactl", "/dev/kfd", "/dev/dxg"  # Nvidia's, AMD's, and Windows' for its Linux
    return sys.platform == "linux" and any(Path(driver).exists() for driver in drivers)


def prefers_llama_cpp(options: LoadOptions, *, gpu: bool) -> bool:
    """Whether a model from a GGUF file is served by llama.cpp: that is asked for, or nothing that only torch has is."""
    asks_for_torch = options.quantization is not None or options.dtype != "auto"
    on_cpu = options.device == "cpu" or (options.device == "auto" and not gpu)
    return options.engine == "llama_cpp" or (options.engine == "auto" and on_cpu and not asks_for_torch)


def trim_heap() -> None:
    """Give memory that was freed back to the system, where the C library keeps it (glibc's `malloc_trim`)."""
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        trim(0)


def map_large_memory() -> None:
    """From now on take pieces of 8 MB or more from the system, and give them back when freed (`mallopt`).

    Left to itself, glibc soon keeps such pieces on its heap, where smaller ones that live longer settle in their gaps.
    """
    if sys.platform == "linux" and (set_option := getattr(ctypes.CDLL(None), "mallopt", None)):
        set_option(_M_MMAP_THRESHOLD, 2**23)


def reuse_freed_memory() -> None:
    """From now on let the C library keep what is freed, up to 32 MB at a time, for the next one who asks (`mallopt`).

    The tensors of a step live for a moment: taken from the system each time, page by page, reading a prompt is a
    third slower. `trim_heap` gives back what has gathered.
    """
    if sys.platform == "linux" and (set_option := getattr(ctypes.CDLL(None), "mallopt", None)):
        set_option(_M_MMAP_THRESHOLD, 2**25)
        set_option(_M_TRIM_THRESHOLD, 2**26)
