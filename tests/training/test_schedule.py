"""The rates are those of transformers' schedulers."""

import pytest
import torch
from transformers import get_scheduler

from mini_claude.training.arguments import Schedule, TrainingArguments
from mini_claude.training.schedule import learning_rate


@pytest.mark.parametrize(
    ("name", "theirs"), [("linear", "linear"), ("cosine", "cosine"), ("constant", "constant_with_warmup")]
)
@pytest.mark.parametrize("warmup_ratio", [0.0, 0.1])
def test_rates_are_those_of_transformers(name: Schedule, theirs: str, warmup_ratio: float) -> None:
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=3e-4)
    num_warmup = round(30 * warmup_ratio)
    scheduler = get_scheduler(theirs, optimizer, num_warmup_steps=num_warmup, num_training_steps=30)
    arguments = TrainingArguments(learning_rate=3e-4, lr_scheduler_type=name, warmup_ratio=warmup_ratio)
    for step in range(30):
        assert learning_rate(arguments, step, 30) == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()


def test_a_run_that_is_all_warm_up_never_divides_by_nothing() -> None:
    assert learning_rate(TrainingArguments(warmup_ratio=1.0), 0, 1) == 0.0
