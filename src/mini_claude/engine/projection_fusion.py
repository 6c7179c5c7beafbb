"""Makes a model's linear layers faster when it is loaded, whatever its architecture.

Two things cost time in a small model on a CPU. One is calls: q, k and v (or gate and up) read the same input, so
their weights are stacked and one matmul answers for all of them. The other is the matmul itself: on AMD's cores
oneDNN is up to three times as fast as torch's default path, on Intel's it is slower for few rows. So both are timed.

Which layers are siblings is observed, not guessed from names: those called one after the other, in the same parent,
with the very same input tensor. A replacement is used only where it gives the same numbers on random input.
Layers that are not exactly `nn.Linear` (bitsandbytes, GPT-2's Conv1D) stay as they are.
"""

import platform
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import linear

_ONEDNN_DTYPES = (torch.float32, torch.bfloat16)
_TIMED_ROWS = (1, 16)  # decoding for one user and for many
_CLEARLY = 0.8  # oneDNN is taken where it needs less than this share of the time, so that noise does not decide


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a linear layer hangs in the model."""

    parent: nn.Module
    name: str
    layer: nn.Linear


class FusedLinear:
    """Several linear layers with one input, computed together.

    The first sibling that is called computes for all; the others, called with the same tensor, find their part.
    """

    def __init__(self, layers: list[nn.Linear], choice: "MatmulChoice", *, reorder: bool) -> None:
        self._sizes = [layer.out_features for layer in layers]
        weight = layers[0].weight if len(layers) == 1 else torch.cat([layer.weight for layer in layers])
        biases = [layer.bias for layer in layers if layer.bias is not None]
        self._bias = torch.cat(tuple(biases)).detach() if biases else None
        self._weight = weight.detach()
        self.uses_onednn = choice.prefers_onednn(self._weight, reorder=reorder)
        if self.uses_onednn and reorder:
            self._weight = _reordered(self._weight)
        self._input: torch.Tensor | None = None
        self._outputs: tuple[torch.Tensor, ...] = ()

    def project(self, x: torch.Tensor, index: int) -> torch.Tensor:
        """What sibling `index` makes of x [..., in_features]: [..., its out_features]."""
        if len(self._sizes) == 1:
            return self._compute(x)
        if x is not self._input:
            self._input, self._outputs = x, self._compute(x).split_with_sizes(self._sizes, -1)
        output = self._outputs[index]
        if index == len(self._sizes) - 1:
            self._input, self._outputs = None, ()
        return output

    def _compute(self, x: torch.Tensor) -> torch.Tensor:
        matmul = _onednn if self.uses_onednn else linear
        return matmul(x, self._weight, self._bias)


class MatmulChoice:
    """Whether oneDNN or torch's default path is faster here, timed once for each shape."""

    def __init__(self) -> None:
        self._known: dict[tuple[torch.Size, torch.dtype, bool], bool] = {}

    def prefers_onednn(self, weight: torch.Tensor, *, reorder: bool) -> bool:
        """For a weight [out_features, in_features] that oneDNN may reorder, or may not."""
        if not _suits_onednn(weight):
            return False
        key = (weight.shape, weight.dtype, reorder)
        if key not in self._known:
            own = _reordered(weight) if reorder else weight
            ratio = 1.0
            for num_rows in _TIMED_ROWS:
                x = torch.ones(1, num_rows, weight.shape[1], dtype=weight.dtype)
                ratio *= _seconds(_onednn, x, own) / _seconds(linear, x, weight)
            self._known[key] = ratio < _CLEARLY ** len(_TIMED_ROWS)
        return self._known[key]


class FusedSibling(nn.Module):
    """Stands where one of the fused layers was."""

    def __init__(self, fused: FusedLinear, index: int, layer: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        # For DoRA, since the fused weight cannot be read back: [out_features] each.
        self.bias = None if layer.bias is None else layer.bias.detach()
        self.weight_norms: torch.Tensor = torch.linalg.vector_norm(layer.weight.detach(), dim=1, dtype=torch.float32)
        self._fused = fused
        self._index = index

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """As `nn.Linear`."""
        return self._fused.project(x, self._index)


@torch.inference_mode()
def fuse_projections(model: nn.Module, forward: Callable[[], object]) -> None:
    """Replace linear layers in place; `forward` runs the model once, on anything.

    No weight is held twice: an LM head that is tied to the embedding keeps the form that the embedding needs.
    """
    groups = _siblings(model, forward)
    choice = MatmulChoice()
    owners = Counter(id(parameter) for module in model.modules() for parameter in module.parameters(recurse=False))
    while groups:
        group = groups.pop()  # not kept, so that each replaced weight is freed before the next one is made
        layers = [place.layer for place in group]
        fused = FusedLinear(layers, choice, reorder=all(owners[id(layer.weight)] == 1 for layer in layers))
        if (len(layers) > 1 or fused.uses_onednn) and _agrees(fused, layers):
            for index, place in enumerate(group):
                setattr(place.parent, place.name, FusedSibling(fused, index, place.layer))


def _siblings(model: nn.Module, forward: Callable[[], object]) -> list[list[_Place]]:
    """Linear layers in order of their calls, grouped where consecutive ones got the same tensor."""
    groups: list[list[_Place]] = []
    inputs: list[torch.Tensor] = []  # kept alive, so that identity means identity
    calls: dict[nn.Linear, int] = {}

    def watch(place: _Place) -> Callable[[nn.Module, tuple[torch.Tensor, ...]], None]:
        def record(_module: nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
            calls[place.layer] = calls.get(place.layer, 0) + 1
            if calls[place.layer] > 1:
                return
            if inputs and arguments[0] is inputs[-1] and _are_alike(groups[-1][0], place):
                groups[-1].append(place)
            else:
                groups.append([place])
                inputs.append(arguments[0])

        return record

    places = [
        _Place(parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if type(child) is nn.Linear
    ]
    hooks = [place.layer.register_forward_pre_hook(watch(place)) for place in places]
    try:
        forward()
    finally:
        for hook in hooks:
            hook.remove()
    return groups


def _are_alike(first: _Place, other: _Place) -> bool:
    return (
        first.parent is other.parent
        and first.layer.weight.dtype == other.layer.weight.dtype
        and first.layer.weight.device == other.layer.weight.device
        and (first.layer.bias is None) == (other.layer.bias is None)
    )


def _suits_onednn(weight: torch.Tensor) -> bool:
    return (
        weight.device.type == "cpu"
        and weight.dtype in _ONEDNN_DTYPES
        and platform.machine() in ("x86_64", "AMD64")
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    )


def _reordered(weight: torch.Tensor) -> torch.Tensor:
    """A copy in the layout that oneDNN likes best; only `_onednn` can read it."""
    copy: torch.Tensor = torch.ops.mkldnn._reorder_linear_weight(weight)
    return copy


def _onednn(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    output: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return output


def _seconds(matmul: Callable[..., torch.Tensor], x: torch.Tensor, weight: torch.Tensor) -> float:
    """The fastest of several runs: what disturbs one only makes it slower."""
    durations = []
    for _ in range(6):
        start = time.perf_counter()
        matmul(x, weight)
        durations.append(time.perf_counter() - start)
    return min(durations)


def _agrees(fused: FusedLinear, layers: list[nn.Linear]) -> bool:
    weight = layers[0].weight
    x = torch.randn(3, layers[0].in_features, generator=torch.Generator().manual_seed(0))
    x = x.to(weight.device, weight.dtype)
    tolerance = 1e-4 if weight.dtype == torch.float32 else 2e-2
    return all(
        torch.allclose(fused.project(x, index), layer(x), rtol=tolerance, atol=tolerance)
        for index, layer in enumerate(layers)
    )
