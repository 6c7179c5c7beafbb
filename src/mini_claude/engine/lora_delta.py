"""What adapters add to one linear layer's output, as tensors: one adapter's part, or those of all of them at once."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch.nn.functional import linear

Rows = slice | torch.Tensor  # which tokens of the step, as an index


@dataclass(frozen=True, slots=True)
class LoraDelta:
    """y + B' A x for plain LoRA, gain * y + B' A x + shift for DoRA; all factors are folded into B' at loading.

    A is [r, in], B' [out, r], gain and shift [out]. In float32 whatever the model's type, as PEFT keeps them.
    """

    a: torch.Tensor
    b: torch.Tensor
    gain: torch.Tensor | None = None
    shift: torch.Tensor | None = None

    def apply(self, x: torch.Tensor, output: torch.Tensor, rows: Rows) -> None:
        """Change the rows of output, [..., tokens, out]; x is [..., tokens, in]."""
        delta = linear(linear(x[..., rows, :].float(), self.a), self.b, self.shift)
        if self.gain is not None:
            output[..., rows, :] = (output[..., rows, :] * self.gain + delta).to(output.dtype)
        else:
            output[..., rows, :] += delta


class DeltaStack:
    """The deltas of a layer's adapters as one: each token is given by number whose it wants.

    All A are one matrix, [ranks, in], and what A x gives for other adapters' ranks is set to zero before B' sees it.
    So two matmuls with fixed shapes answer for any mixture of adapters, and no weight is copied for a token. -1 is the
    base model: its tokens get zero added to them, which changes nothing.
    """

    def __init__(self, deltas: Mapping[int, LoraDelta]) -> None:
        """By number."""
        first = next(iter(deltas.values()))
        self._a = torch.cat([delta.a for delta in deltas.values()])
        self._b = torch.cat([delta.b.T for delta in deltas.values()])
        owners = [number for number, delta in deltas.items() for _ in range(len(delta.a))]
        self._owners = torch.tensor(owners, device=first.a.device)
        self._gains: torch.Tensor | None = None
        if any(delta.gain is not None for delta in deltas.values()):
            size = (max(deltas) + 2, first.b.shape[0])  # the last row, at -1, is the base model's
            self._gains, self._shifts = first.b.new_ones(size), first.b.new_zeros(size)
            for number, delta in deltas.items():
                if delta.gain is not None:
                    self._gains[number] = delta.gain
                if delta.shift is not None:
                    self._shifts[number] = delta.shift

    def apply(self, x: torch.Tensor, output: torch.Tensor, numbers: torch.Tensor) -> None:
        """Change output, [..., tokens, out]; x is [..., tokens, in] and numbers [tokens]."""
        hidden = linear(x.float(), self._a)
        delta = hidden.where(self._owners == numbers[:, None], 0.0) @ self._b
        if self._gains is not None:
            output.copy_(output * self._gains[numbers] + delta + self._shifts[numbers])
        else:
            output += delta
