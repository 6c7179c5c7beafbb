"""AdamW (Loshchilov and Hutter 2017) over what is trained."""

from collections.abc import Collection

import torch
from torch import nn

from mini_claude.training.arguments import TrainingArguments


def create_optimizer(parameters: Collection[nn.Parameter], arguments: TrainingArguments) -> torch.optim.AdamW:
    """Weights that multiply decay, biases and the scales of norms (which have one axis) do not."""
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": arguments.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=arguments.learning_rate,
        betas=(arguments.adam_beta1, arguments.adam_beta2),
        eps=arguments.adam_epsilon,
    )
