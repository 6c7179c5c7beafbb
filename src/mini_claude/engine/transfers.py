"""Small tables on their way to the device and back, so that neither side waits for the other.

From pinned memory a GPU copies by itself. Torch keeps pinned memory that a copy still reads from being used again, so
a table is made anew for each transfer. On a CPU there is nothing to do.
"""

from collections.abc import Sequence

import torch


def to_device(
    values: Sequence[int] | Sequence[float] | Sequence[Sequence[int]], dtype: torch.dtype, device: torch.device
) -> torch.Tensor:
    """A tensor of these numbers on the device."""
    if device.type == "cpu":
        return torch.tensor(values, dtype=dtype)
    return torch.tensor(values, dtype=dtype, pin_memory=True).to(device, non_blocking=True)


class Arrival:
    """A tensor that is being copied to memory of the host."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self._copied: torch.cuda.Event | None = None
        self._tensor = tensor
        if tensor.device.type != "cpu":
            self._tensor = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._tensor.copy_(tensor, non_blocking=True)
            self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._copied.record()

    def wait(self) -> torch.Tensor:
        """The tensor on the host. Waits for what was asked of the device before, and for nothing that came later."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._tensor
