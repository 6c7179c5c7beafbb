"""What the machine offers to a model."""

import ctypes
import sys

from mini_claude.types import GpuMemory


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


def trim_heap() -> None:
    """Give memory that was freed back to the system, where the C library keeps it (glibc's `malloc_trim`)."""
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        trim(0)
