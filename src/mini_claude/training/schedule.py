"""The learning rate over the steps of a run, as transformers' schedules of the same names have it."""

import math

from mini_claude.training.arguments import TrainingArguments


def learning_rate(arguments: TrainingArguments, step: int, num_steps: int) -> float:
    """The rate that step `step`, counted from 0, is taken with.

    It rises from 0 over the first `warmup_ratio` of the steps and then falls to 0, along a line or half a cosine
    (Loshchilov and Hutter 2016, without restarts), or stays.
    """
    num_warmup = math.ceil(arguments.warmup_ratio * num_steps)
    if step < num_warmup:
        return arguments.learning_rate * step / num_warmup
    progress = (step - num_warmup) / max(1, num_steps - num_warmup)
    match arguments.lr_scheduler_type:
        case "linear":
            factor = 1.0 - progress
        case "cosine":
            factor = 0.5 * (1.0 + math.cos(math.pi * progress))
        case "constant":
            factor = 1.0
    return arguments.learning_rate * factor
