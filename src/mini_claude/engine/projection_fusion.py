"""Makes a model's linear layers faster when it is loaded, whatever its architecture.

Two things cost time in a small model on a CPU. One is calls: q, k and v (or gate and up) read the same input, so
their weights are stacked and one matmul answers for all of them. The other is the matmul itself: see matmul.py.

Which layers are siblings is observed, not guessed from names: those called one after the other, in the same parent,
with the very same input tensor. A replacement is used only where it gives the same numbers on random input.
Layers that are not exactly `nn.Linear` (bitsandbytes, GPT-2's Conv1D) stay as they are.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from mini_claude.engine.direct_module import DirectModule
from mini_claude.engine.matmul import MatmulChoice, TorchMatmul

_AGREEING_ROWS = (1, 3, 16, 70)  # the kernels have other ways for one row, for few and for many


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

    def __init__(self, layers: list[nn.Linear], choice: MatmulChoice, *, is_shared: bool) -> None:
        self._sizes = [layer.out_features for layer in layers]
        weight = layers[0].weight if len(layers) == 1 else torch.cat([layer.weight for layer in layers])
        biases = [layer.bias for layer in layers if layer.bias is not None]
        self._bias = torch.cat(tuple(biases)).detach() if biases else None
        self._matmul = choice.make(weight.detach(), is_shared=is_shared)
        self.saves_time = len(layers) > 1 or not isinstance(self._matmul, TorchMatmul)
        self._input: torch.Tensor | None = None
        self._outputs: tuple[torch.Tensor, ...] = ()

    def project(self, x: torch.Tensor, index: int) -> torch.Tensor:
        """What sibling `index` makes of x [..., in_features]: [..., its out_features]."""
        if len(self._sizes) == 1:
            return self._matmul(x, self._bias)
        if x is not self._input:
            self._input, self._outputs = x, self._matmul(x, self._bias).split_with_sizes(self._sizes, -1)
        output = self._outputs[index]
        if index == len(self._sizes) - 1:
            self._input, self._outputs = None, ()
        return output


class FusedSibling(DirectModule):
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
        fused = FusedLinear(layers, choice, is_shared=any(owners[id(layer.weight)] > 1 for layer in layers))
        if fused.saves_time and _agrees(fused, layers):
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


def _agrees(fused: FusedLinear, layers: list[nn.Linear]) -> bool:
    weight = layers[0].weight
    tolerance = 1e-4 if weight.dtype == torch.float32 else 2e-2
    generator = torch.Generator().manual_seed(0)
    for num_rows in _AGREEING_ROWS:
        x = torch.randn(1, num_rows, layers[0].in_features, generator=generator).to(weight.device, weight.dtype)
        for index, layer in enumerate(layers):
            if not torch.allclose(fused.project(x, index), layer(x), rtol=tolerance, atol=tolerance):
                return False
    return True
