"""LoRA (Hu et al. 2021) beside the base model: several adapters in one step, each for its own sequences' tokens.

A step's tokens are one row, [1, tokens]. After a linear layer has computed all of them as ever, each adapter that
changes this layer adds its part to the tokens of its own sequences, in place. The tokens of the base see no
operation at all. The layers themselves stay as they are, fused or quantised: adapters hang on them as forward hooks.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.functional import one_hot
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from mini_claude.engine.adapter_weights import AdapterWeights, LayerShape, LayerWeights
from mini_claude.engine.lora_delta import DeltaStack, LoraDelta, Rows
from mini_claude.engine.projection_fusion import FusedSibling
from mini_claude.types import AdapterRef

_IDENTITY_ROWS = 256  # of the identity at once: it is as wide as the layer, and taller than it needs to be


class StepRows:
    """Whose tokens a step reads; shared by all adapted layers of a model.

    It is said in one of two ways: by places, known to the host, or by numbers on the device, which may change
    under a captured step.
    """

    def __init__(self, device: torch.device) -> None:
        self.by_adapter: tuple[tuple[AdapterRef, Rows], ...] = ()
        self.by_token: torch.Tensor | None = None  # each one's adapter by its number, -1 for the base model
        self.num_tokens = 0
        self.numbers: dict[AdapterRef, int] = {}
        self._device = device

    def assign(self, owners: Sequence[tuple[AdapterRef | None, int]]) -> None:
        """The step's tokens in their order: (adapter, number of consecutive tokens), None for the base model."""
        places: dict[AdapterRef, list[int]] = {}
        self.by_token = None
        self.num_tokens = 0
        for adapter, num_tokens in owners:
            if adapter is not None:
                places.setdefault(adapter, []).extend(range(self.num_tokens, self.num_tokens + num_tokens))
            self.num_tokens += num_tokens
        self.by_adapter = tuple((adapter, self._index(numbers)) for adapter, numbers in places.items())

    def assign_numbers(self, by_token: torch.Tensor | None, num_tokens: int) -> None:
        """The step's tokens by their adapters' numbers, int64 [tokens]; None when all are the base model's."""
        self.by_adapter, self.by_token, self.num_tokens = (), by_token, num_tokens

    def numbers_of(self, adapters: Sequence[AdapterRef | None]) -> list[int]:
        """For `assign_numbers`."""
        return [-1 if adapter is None else self.numbers[adapter] for adapter in adapters]

    def _index(self, numbers: list[int]) -> Rows:
        """Neighbours, which they mostly are, need no copy."""
        if numbers[-1] - numbers[0] + 1 == len(numbers):
            return slice(numbers[0], numbers[-1] + 1)
        return torch.tensor(numbers, device=self._device)


class AdaptedLayer:
    """A linear layer's forward hook: what the adapters of the present step add to its output."""

    def __init__(self, layer: nn.Module, rows: StepRows) -> None:
        self.deltas: dict[AdapterRef, LoraDelta] = {}
        self._rows = rows
        self._stack: DeltaStack | None = None
        self._hook = layer.register_forward_hook(self._add)

    def put(self, adapter: AdapterRef, delta: LoraDelta) -> None:
        """Add an adapter's part."""
        self.deltas[adapter] = delta
        self._stack = None

    def drop(self, adapter: AdapterRef) -> None:
        """Forget an adapter's part, if there is one."""
        self.deltas.pop(adapter, None)
        self._stack = None

    def detach(self) -> None:
        """The layer is as it was."""
        self._hook.remove()

    def _add(self, _layer: nn.Module, arguments: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        if self._rows.by_token is not None:
            if self._stack is None:
                self._stack = DeltaStack({self._rows.numbers[adapter]: delta for adapter, delta in self.deltas.items()})
            self._stack.apply(arguments[0], output, self._rows.by_token)
        for adapter, rows in self._rows.by_adapter:
            if (delta := self.deltas.get(adapter)) is not None:
                assert output.shape[-2] == self._rows.num_tokens
                delta.apply(arguments[0], output, rows)


class AdapterLayers:
    """All adapters of a prepared model. Used from the engine's thread."""

    def __init__(self, model: PreTrainedModel, rows: StepRows) -> None:
        self._rows = rows
        self._model = model
        self._adapted: dict[str, AdaptedLayer] = {}

    @torch.inference_mode()
    def add(self, adapter: AdapterRef, weights: AdapterWeights) -> None:
        """Load an adapter that `read_adapter` found to fit these layers: all of it, or, when this raises, none."""
        deltas = {name: self._delta(name, part) for name, part in weights.items()}
        taken = set(self._rows.numbers.values())
        self._rows.numbers[adapter] = next(number for number in range(len(taken) + 1) if number not in taken)
        for name, delta in deltas.items():
            if name not in self._adapted:
                self._adapted[name] = AdaptedLayer(self._model.get_submodule(name), self._rows)
            self._adapted[name].put(adapter, delta)

    def remove(self, adapter: AdapterRef) -> None:
        """Forget an adapter that no sequence uses; a layer that no other one changes loses its hook."""
        self._rows.numbers.pop(adapter, None)
        for name, layer in tuple(self._adapted.items()):
            layer.drop(adapter)
            if not layer.deltas:
                layer.detach()
                del self._adapted[name]

    def _delta(self, name: str, weights: LayerWeights) -> LoraDelta:
        device = self._model.device
        a, b = torch.from_numpy(weights.a).to(device), torch.from_numpy(weights.b).to(device) * weights.scale
        if weights.magnitude is None:
            return LoraDelta(a, b)
        layer = self._model.get_submodule(name)
        bias = layer.bias
        gain = torch.from_numpy(weights.magnitude).to(device) / _adapted_norms(layer, a, b, self._model.dtype)
        return LoraDelta(a, b * gain[:, None], gain, None if bias is None else (1 - gain) * bias)


@contextmanager
def adaptable_layers(model: PreTrainedModel) -> Iterator[dict[str, LayerShape]]:
    """Fills the dictionary, when the block ends, with the linear layers that saw every token whenever the model ran.

    The inputs of the others are not in the order of a step's tokens: an LM head sees what will be sampled, an expert
    what it was chosen for. The block runs the model on flat rows of more than one token.
    """
    found: dict[str, LayerShape] = {}
    shapes = {name: shape for name, layer in model.named_modules() if (shape := _shape(layer)) is not None}
    num_tokens: list[int] = []  # of each run of the model
    nums_seen: dict[str, list[int]] = {name: [] for name in shapes}  # of each call of a layer

    def begin(_model: nn.Module, _arguments: object, keywords: dict[str, torch.Tensor]) -> None:
        num_tokens.append(keywords["input_ids"].shape[-1])

    def recorder(nums: list[int]) -> Callable[[nn.Module, tuple[torch.Tensor, ...]], None]:
        def record(_layer: nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
            leading = arguments[0].shape[:-1] if arguments else torch.Size((0,))
            nums.append(leading[-1] if leading and leading[-1] == leading.numel() else 0)

        return record

    hooks = [model.register_forward_pre_hook(begin, with_kwargs=True)]
    hooks += [model.get_submodule(name).register_forward_pre_hook(recorder(nums_seen[name])) for name in shapes]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
    found.update({name: shape for name, shape in shapes.items() if nums_seen[name] == num_tokens})


def _shape(layer: nn.Module) -> LayerShape | None:
    if isinstance(layer, nn.Linear | FusedSibling):  # those of bitsandbytes are nn.Linear as well
        return LayerShape(layer.in_features, layer.out_features)
    if isinstance(layer, Conv1D):  # GPT-2
        return LayerShape(layer.nx, layer.nf)
    return None


def _adapted_norms(layer: nn.Module, a: torch.Tensor, b: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """||W + B A|| of each row [out], the divisor of DoRA (Liu et al. 2024, equation 5)."""
    if not isinstance(layer, FusedSibling):
        return (_transposed_weight(layer, dtype) + a.T @ b.T).square().sum(0).sqrt()
    # A fused W cannot be read back, but ||W||^2 + 2 <W, B A> + ||B A||^2 does not need it: <W, B A> is the diagonal of
    # B (A W^T), and A W^T is what the layer gives for A.
    cross = (b.T * _times_weight(layer, a.to(dtype))).sum(0)
    own = (b @ (a @ a.T) * b).sum(1)
    return (layer.weight_norms.square() + 2 * cross + own).sqrt()


def _transposed_weight(layer: nn.Module, dtype: torch.dtype) -> torch.Tensor:
    """W^T in float32, [in, out]."""
    weight: torch.Tensor = layer.weight  # type: ignore[assignment]
    if isinstance(layer, Conv1D):
        return weight.float()
    if weight.is_floating_point():
        return weight.float().T
    assert isinstance(layer, nn.Linear)  # quantised: what its W is, the layer itself knows best
    numbers = torch.arange(layer.in_features, device=weight.device)
    rows = (one_hot(part, layer.in_features).to(dtype) for part in torch.split(numbers, _IDENTITY_ROWS))
    return torch.cat([_times_weight(layer, part) for part in rows])


def _times_weight(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """x W^T in float32, [rows, out]: not by a call, so that no hook takes the rows for a step's tokens."""
    output: torch.Tensor = layer.forward(x).float()
    bias: torch.Tensor | None = layer.bias  # type: ignore[assignment]
    return output if bias is None else output - bias
