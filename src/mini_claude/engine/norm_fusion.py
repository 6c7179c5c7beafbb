"""Replaces RMSNorm modules, written in Python as five operations, by fewer and faster ones where both agree."""

import torch
from torch import nn
from torch.nn.functional import rms_norm

from mini_claude.engine.direct_module import DirectModule


class FusedRMSNorm(DirectModule):
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension (Zhang and Sennrich 2019)."""

    def __init__(self, weight: torch.Tensor, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self._eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Same shape as x."""
        return rms_norm(x, self.weight.shape, self.weight, self._eps)


class CPURMSNorm(FusedRMSNorm):
    """The same in float32 on a CPU, where torch's call is no kernel of its own and twice as slow as a vector norm:
    x / hypot(|x|, sqrt(n eps)) * weight sqrt(n)."""

    def __init__(self, weight: torch.Tensor, eps: float) -> None:
        super().__init__(weight, eps)
        size = weight.shape[0]
        self._scale = weight * size**0.5
        self._floor = torch.tensor((size * eps) ** 0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Same shape as x."""
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        output: torch.Tensor = x / torch.hypot(norm, self._floor) * self._scale
        return output


@torch.inference_mode()
def fuse_norms(model: nn.Module) -> None:
    """Replace in place. A candidate is any RMSNorm by class name; its epsilon is its only float, and its weight is
    used as it is or, as Gemma does, plus one. Numbers decide."""
    for parent in list(model.modules()):
        for name, child in tuple(parent.named_children()):
            if type(child).__name__.endswith("RMSNorm") and (fused := _fused(child)) is not None:
                setattr(parent, name, fused)


def _fused(norm: nn.Module) -> FusedRMSNorm | None:
    parameters = dict(norm.named_parameters())
    epsilons = [value for value in vars(norm).values() if isinstance(value, float)]
    if set(parameters) != {"weight"} or len(epsilons) != 1:
        return None
    weight = parameters["weight"].detach().clone()  # a view would keep the mapped weight file in memory
    kind = CPURMSNorm if weight.device.type == "cpu" and weight.dtype == torch.float32 else FusedRMSNorm
    for candidate in (kind(weight, epsilons[0]), kind(1.0 + weight, epsilons[0])):
        if _agrees(candidate, norm):
            return candidate
    return None


def _agrees(fused: FusedRMSNorm, norm: nn.Module) -> bool:
    x = torch.randn(4, *fused.weight.shape, generator=torch.Generator().manual_seed(0))
    x[2:] *= 1e-3  # small enough for epsilon to matter
    x = x.to(fused.weight.device, fused.weight.dtype)
    return torch.allclose(fused(x), norm(x), rtol=1e-5, atol=1e-6)
