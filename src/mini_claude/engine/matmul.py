"""Three ways to multiply by a linear layer's weight on a CPU, and the choice among them by the clock.

Which one is fastest depends on the processor and on the number of rows. Torch's own call reads a weight as it is.
oneDNN's is up to three times as fast on AMD's cores, and MKL's, with the weight packed beforehand, reads it at the
same speed for 4 rows as for one on Intel's. The last two keep the weight in a layout of theirs, from which it cannot be
read back; a weight that others need too, such as an embedding's, stays as it is.
"""

import platform
import time
from collections.abc import Callable
from math import prod
from typing import Protocol

import torch
from torch.nn.functional import linear

_TIMED_ROWS = (1, 16)  # decoding for one user and for many
_CLEARLY = 0.9  # another way than torch's must need less than this share of its time, so that noise does not decide
_TIMED_BYTES = 2**23  # of equal weights, used in turn: more than the cores' own caches, as all weights of a model are
_MAX_COPIES = 16  # of a small weight: thousands of them would take longer to make than any way saves
_PACKED_FOR_ROWS = 512  # MKL's hint: the layout for many rows is as good as any for few, not the other way round


class Matmul(Protocol):
    """x W^T + b for one weight."""

    def __call__(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """[..., in_features] to [..., out_features]."""


class TorchMatmul:
    """The weight as it is."""

    def __init__(self, weight: torch.Tensor) -> None:
        self._weight = weight

    def __call__(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """See `Matmul`."""
        return linear(x, self._weight, bias)


class OneDNNMatmul:
    """oneDNN's kernels, on the weight as it is."""

    def __init__(self, weight: torch.Tensor) -> None:
        self._weight = weight

    def __call__(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """See `Matmul`."""
        output: torch.Tensor = torch.ops.mkldnn._linear_pointwise.default(x, self._weight, bias, "none", [], "")
        return output


class ReorderedOneDNNMatmul(OneDNNMatmul):
    """oneDNN's kernels, on a copy in the layout that they like best."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__(torch.ops.mkldnn._reorder_linear_weight(weight))


class PackedMKLMatmul:
    """MKL's kernels, on a copy in the layout that they read in order."""

    def __init__(self, weight: torch.Tensor) -> None:
        self._packed: torch.Tensor = torch.ops.mkl._mkl_reorder_linear_weight(weight, _PACKED_FOR_ROWS)
        self._shape = torch.zeros((), dtype=weight.dtype).expand(weight.shape)  # the call asks it for nothing else
        self._in_features = weight.shape[1]

    def __call__(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """See `Matmul`."""
        # It would use the unpacked weight if it were told of another number of rows than it gets.
        num_rows = x.numel() // self._in_features
        output: torch.Tensor = torch.ops.mkl._mkl_linear.default(x, self._packed, self._shape, bias, num_rows)
        return output


class MatmulChoice:
    """The fastest way for each shape of weight, timed once."""

    def __init__(self) -> None:
        self._known: dict[tuple[torch.Size, torch.dtype, bool], Callable[[torch.Tensor], Matmul]] = {}

    def make(self, weight: torch.Tensor, *, is_shared: bool) -> Matmul:
        """For a weight [out_features, in_features]; a shared one is not copied."""
        key = (weight.shape, weight.dtype, is_shared)
        if key not in self._known:
            self._known[key] = _fastest(weight, _candidates(weight, is_shared=is_shared))
        return self._known[key](weight)


def _candidates(weight: torch.Tensor, *, is_shared: bool) -> list[Callable[[torch.Tensor], Matmul]]:
    """What can be used instead of torch's own call."""
    if weight.device.type != "cpu" or platform.machine() not in ("x86_64", "AMD64"):
        return []
    has_mkl = torch.backends.mkl.is_available()  # type: ignore[no-untyped-call]
    candidates: list[Callable[[torch.Tensor], Matmul]] = []
    if _onednn_has(weight.dtype):
        candidates.append(OneDNNMatmul if is_shared else ReorderedOneDNNMatmul)
    if weight.dtype == torch.float32 and not is_shared and has_mkl:
        candidates.append(PackedMKLMatmul)
    return candidates


def _onednn_has(dtype: torch.dtype) -> bool:
    """Whether its calls take this type: bfloat16 needs instructions that processors before AVX-512 lack."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _fastest(
    weight: torch.Tensor, candidates: list[Callable[[torch.Tensor], Matmul]]
) -> Callable[[torch.Tensor], Matmul]:
    if not candidates:
        return TorchMatmul
    num_copies = min(max(1, _TIMED_BYTES // (weight.numel() * weight.element_size())), _MAX_COPIES)
    copies = [weight, *(weight.clone() for _ in range(num_copies - 1))]
    times = {candidate: _time([candidate(copy) for copy in copies], weight) for candidate in candidates}
    best = min(times, key=lambda candidate: times[candidate])
    own_time = _time([TorchMatmul(copy) for copy in copies], weight)
    return best if times[best] < own_time * _CLEARLY else TorchMatmul


def _time(matmuls: list[Matmul], weight: torch.Tensor) -> float:
    """The product of the seconds for each number of rows, so that each counts as much."""
    seconds = []
    for num_rows in _TIMED_ROWS:
        x = torch.ones(1, num_rows, weight.shape[1], dtype=weight.dtype)
        seconds.append(min(_seconds(matmuls, x) for _ in range(5)))  # what disturbs a run only makes it slower
    return prod(seconds)


def _seconds(matmuls: list[Matmul], x: torch.Tensor) -> float:
    start = time.perf_counter()
    for matmul in matmuls:
        matmul(x, None)
    return time.perf_counter() - start
