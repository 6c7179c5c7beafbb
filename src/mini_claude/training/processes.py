"""What the processes of one run tell each other. With a single one, all of this does nothing.

The model is not wrapped in DistributedDataParallel: that averages over processes, which is wrong when they have
different numbers of supervised tokens, and wants as many backward passes from each. The gradients of an adapter are
small, so they are simply added up once a step.
"""

from collections.abc import Collection, Mapping

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from torch import nn

from mini_claude.training.callbacks import Control


def add_up(sums: Mapping[str, float]) -> dict[str, float]:
    """The sums of all processes, key by key."""
    total: dict[str, float] = {}
    for part in gather_object([dict(sums)]):
        for name, value in part.items():
            total[name] = total.get(name, 0.0) + value
    return total


@torch.no_grad()
def add_up_gradients(accelerator: Accelerator, parameters: Collection[nn.Parameter]) -> None:
    """Give every process the sum of all processes' gradients; one that had no row has none of its own."""
    if accelerator.num_processes == 1:
        return
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    flat = torch.cat([parameter.grad.reshape(-1) for parameter in parameters if parameter.grad is not None])
    flat = accelerator.reduce(flat, "sum")
    for parameter, gradient in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        parameter.grad = gradient.view_as(parameter)


def agree(control: Control) -> None:
    """Make every process do what the observers in the main one asked for."""
    values = broadcast_object_list([control.stop_reason, control.save])
    control.stop_reason, control.save = values
