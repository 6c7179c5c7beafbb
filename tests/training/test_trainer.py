"""What a run computes and when it stops."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from mini_claude.errors import InvalidRequest
from mini_claude.training.arguments import LoraSettings
from mini_claude.training.callbacks import (
    Callback,
    CancelCallback,
    Control,
    ProgressCallback,
    StepDone,
    TimeLimitCallback,
)
from mini_claude.training.examples import Conversation, Example, RowProblem
from mini_claude.training.measure import measure
from mini_claude.training.objectives import SupervisedFineTuning
from mini_claude.training.training_data import prepare_data
from mini_claude.training.training_state import TrainingState
from mini_claude.types import Message

from .tiny_training import (
    CHAT_MODEL,
    Recorder,
    arguments,
    conversations,
    preferences,
    same,
    save_model,
    train,
    weights,
)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return save_model(tmp_path_factory.mktemp("llama"))


@pytest.mark.parametrize("objective", ["sft", "dpo"])
def test_accumulated_steps_are_those_of_one_large_batch(llama: Path, tmp_path: Path, objective: str) -> None:
    examples = conversations(60) if objective == "sft" else preferences(60)
    curves = []
    for size, accumulation in ((16, 1), (4, 4), (1, 16)):
        recorder = Recorder()
        train(
            llama,
            tmp_path / f"{size}",
            examples=examples,
            callbacks=[recorder],
            objective=objective,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulation,
        )
        curves.append(recorder.losses)
    assert len(set(curves[0])) > 1
    for curve in curves[1:]:
        assert curve == pytest.approx(curves[0], rel=1e-5)


def test_packed_and_grouped_steps_over_the_same_examples_have_the_same_loss(llama: Path, tmp_path: Path) -> None:
    """All in one step: only how they are put together differs."""
    packed, grouped = Recorder(), Recorder()
    settings: dict[str, Any] = {"num_train_epochs": 1.0, "max_steps": 0, "eval_ratio": 0.0}
    train(llama, tmp_path / "p", callbacks=[packed], batching="packed", gradient_accumulation_steps=100, **settings)
    train(llama, tmp_path / "g", callbacks=[grouped], per_device_train_batch_size=100, **settings)
    assert len(packed.steps) == len(grouped.steps) == 1
    assert packed.losses == pytest.approx(grouped.losses, rel=1e-5)
    assert packed.steps[0].grad_norm == pytest.approx(grouped.steps[0].grad_norm, rel=1e-4)
    assert packed.steps[0].weight == grouped.steps[0].weight


def test_step_losses_are_means_over_supervised_tokens(llama: Path, tmp_path: Path) -> None:
    recorder = Recorder()
    result = train(llama, tmp_path, callbacks=[recorder], num_train_epochs=1.0, max_steps=0)
    weight = sum(SupervisedFineTuning().weight(example) for example in result.data.train)
    assert sum(done.weight for done in recorder.steps) == weight
    assert result.state.weight_seen == weight
    mean = sum(done.loss * done.weight for done in recorder.steps) / weight
    assert result.metrics["train_loss"] == pytest.approx(mean)
    assert result.state.tokens_seen == sum(len(example.token_ids) for example in result.data.train)  # type: ignore[union-attr, misc]


def test_the_same_seed_gives_the_same_weights_and_another_gives_others(llama: Path, tmp_path: Path) -> None:
    lora = LoraSettings(r=4, lora_dropout=0.1)
    one, again, other = (
        weights(train(llama, tmp_path / str(i), lora=lora, max_steps=3, seed=seed)) for i, seed in enumerate((0, 0, 1))
    )
    assert same(one, again)
    assert not same(one, other)


def test_held_out_examples_are_measured_before_the_first_and_after_the_last_step(llama: Path, tmp_path: Path) -> None:
    result = train(llama, tmp_path, max_steps=5)
    assert [evaluation.step for evaluation in result.state.evaluations] == [0, 5]
    assert len(result.data.held_out) == 4
    assert result.metrics["eval_loss_before"] > result.metrics["eval_loss"]


def test_and_every_so_many_steps_once_each(llama: Path, tmp_path: Path) -> None:
    result = train(llama, tmp_path, max_steps=6, eval_steps=2)
    assert [evaluation.step for evaluation in result.state.evaluations] == [0, 2, 4, 6]


def test_measuring_does_not_change_what_is_learned(llama: Path, tmp_path: Path) -> None:
    lora = LoraSettings(r=4, lora_dropout=0.1)
    seldom = train(llama, tmp_path / "seldom", lora=lora)
    often = train(llama, tmp_path / "often", lora=lora, eval_steps=1)
    assert same(weights(seldom), weights(often))


def test_clipping_bounds_the_step_and_reports_the_norm_before(llama: Path, tmp_path: Path) -> None:
    free, clipped = Recorder(), Recorder()
    train(llama, tmp_path / "free", callbacks=[free], max_grad_norm=0.0, max_steps=2)
    train(llama, tmp_path / "clipped", callbacks=[clipped], max_grad_norm=1e-9, adam_epsilon=1.0, max_steps=2)
    assert clipped.steps[0].grad_norm == free.steps[0].grad_norm > 0.1
    assert clipped.losses[1] == pytest.approx(free.losses[1], rel=0.5)


def test_a_loss_that_is_no_number_fails_the_run_with_step_and_rows(llama: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"The loss of step 2 is nan.*rows in it are \d+") as caught:
        train(llama, tmp_path, learning_rate=1e30, warmup_ratio=0.0)
    assert caught.value.code == "loss_not_finite"
    assert not (tmp_path / "output").exists()


def test_a_loss_of_zero_fails_the_run_with_step_and_rows(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mini_claude.training import objectives

    monkeypatch.setattr(objectives, "forward", _certain)
    with pytest.raises(InvalidRequest, match=r"The loss of step 1 is exactly 0.*rows in it are 1, 2, 3") as caught:
        train(llama, tmp_path, examples=conversations(3), eval_ratio=0.0)
    assert caught.value.code == "loss_zero"


def _certain(model: torch.nn.Module, row: object) -> torch.Tensor:
    logits = torch.full((len(row.targets), 260), -1e4)  # type: ignore[attr-defined]
    logits[range(len(logits)), row.targets] = 1e4  # type: ignore[attr-defined]
    return logits + 0.0 * next(p for p in model.parameters() if p.requires_grad).sum()


def test_early_stopping_ends_the_run_with_the_best_weights(llama: Path, tmp_path: Path) -> None:
    """The rate is so high that it gets worse."""
    settings: dict[str, Any] = {"max_steps": 40, "eval_steps": 1, "learning_rate": 0.2, "lr_scheduler_type": "constant"}
    result = train(llama, tmp_path / "stopped", early_stopping_patience=3, **settings)
    assert result.stop_reason == "early_stopping"
    best = result.state.best
    assert best is not None
    assert result.weights_step == best.step == result.state.step - 3
    assert result.metrics["eval_loss"] == best.loss

    class StopThere(Callback):
        def on_step(self, done: StepDone, control: Control) -> None:
            if done.step == result.weights_step:
                control.stop_reason = "early_stopping"

    stopped_there = train(llama, tmp_path / "there", callbacks=[StopThere()], **settings)
    assert same(weights(result), weights(stopped_there))


def test_a_run_beyond_its_time_ends_with_the_weights_of_the_step(llama: Path, tmp_path: Path) -> None:
    result = train(llama, tmp_path / "limited", callbacks=[TimeLimitCallback(1e-9)], max_steps=4)
    assert (result.stop_reason, result.state.step, result.weights_step) == ("time_limit", 1, 1)
    assert result.metrics["eval_loss"] == result.state.evaluations[-1].loss
    again = train(llama, tmp_path / "limited", callbacks=[TimeLimitCallback(1e-9)], max_steps=4)
    assert (again.stop_reason, again.state.step) == ("time_limit", 1)
    assert same(weights(again), weights(result))


def test_time_that_is_over_with_the_last_step_ends_nothing(llama: Path, tmp_path: Path) -> None:
    result = train(llama, tmp_path, callbacks=[TimeLimitCallback(1e-9)], max_steps=1)
    assert (result.stop_reason, result.state.step) == (None, 1)


def test_a_run_that_keeps_getting_better_is_not_stopped(llama: Path, tmp_path: Path) -> None:
    result = train(llama, tmp_path, max_steps=8, eval_steps=1, early_stopping_patience=2, warmup_ratio=0.0)
    assert result.stop_reason is None


def test_a_cancelled_run_stops_after_the_step_and_goes_on_later(llama: Path, tmp_path: Path) -> None:
    taken: list[int] = []
    callbacks = [ProgressCallback(lambda done: taken.append(done.step)), CancelCallback(lambda: len(taken) == 2)]
    cancelled = train(llama, tmp_path / "job", callbacks=callbacks)
    assert (cancelled.stop_reason, cancelled.output_folder, taken) == ("cancelled", None, [1, 2])
    assert not (tmp_path / "job" / "output").exists()
    resumed = train(llama, tmp_path / "job")
    assert same(weights(resumed), weights(train(llama, tmp_path / "whole")))


def test_a_run_cancelled_before_it_began_takes_no_step(llama: Path, tmp_path: Path) -> None:
    result = train(llama, tmp_path, callbacks=[CancelCallback(lambda: True)])
    assert (result.stop_reason, result.state.step) == ("cancelled", 0)


def test_progress_comes_every_so_many_steps_and_at_the_end(llama: Path, tmp_path: Path) -> None:
    steps: list[StepDone] = []
    train(llama, tmp_path, callbacks=[ProgressCallback(steps.append, logging_steps=4)], max_steps=6)
    assert [done.step for done in steps] == [4, 6]
    assert steps[-1].seconds_left == 0.0
    assert steps[0].seconds_left > 0.0


def test_the_metrics_file_has_every_step_and_evaluation(llama: Path, tmp_path: Path) -> None:
    recorder = Recorder()
    result = train(llama, tmp_path, callbacks=[recorder], max_steps=3)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["event"], line["step"]) for line in lines] == [
        ("evaluation", 0),
        ("step", 1),
        ("step", 2),
        ("step", 3),
        ("evaluation", 3),
    ]
    assert [line["loss"] for line in lines if line["event"] == "step"] == recorder.losses
    assert lines[-1]["loss"] == result.state.evaluations[-1].loss


BROKEN: list[Example | RowProblem] = [
    *conversations(12),
    RowProblem(row=90, line=91, reason="not JSON"),
    Conversation((Message("user", "no answer"),), row=95),
]


def test_broken_rows_fail_the_run_and_are_named() -> None:
    with pytest.raises(InvalidRequest, match=r"row 90 \(line 91\): not JSON; row 95: .*assistant's\. Mend") as caught:
        prepare_data(BROKEN, CHAT_MODEL, arguments())
    assert caught.value.code == "broken_rows"


def test_or_are_dropped_by_the_users_choice() -> None:
    data = prepare_data(BROKEN, CHAT_MODEL, arguments(drop_broken_rows=True))
    assert [problem.row for problem in data.dropped] == [90, 95]
    assert len(data.train) + len(data.held_out) == 12


def test_nothing_to_train_on_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="nothing to train on"):
        prepare_data(BROKEN[12:], CHAT_MODEL, arguments(drop_broken_rows=True))


def test_a_run_whose_checkpoints_cannot_fit_is_refused_before_it_begins(llama: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="max_checkpoint_bytes is 1,000") as caught:
        train(llama, tmp_path, max_checkpoint_bytes=1000)
    assert caught.value.param == "max_checkpoint_bytes"


def test_an_exception_of_an_observer_ends_the_run(llama: Path, tmp_path: Path) -> None:
    class Broken(Callback):
        def on_evaluate(self, state: TrainingState, control: Control) -> None:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        train(llama, tmp_path, callbacks=[Broken()])


def test_measuring_a_job_takes_real_steps_and_leaves_nothing(llama: Path, tmp_path: Path) -> None:
    data = prepare_data(conversations(40), CHAT_MODEL, arguments())
    measured = measure(llama, data.train, LoraSettings(r=4), arguments(), num_steps=3)
    assert measured.tokens_per_second * measured.seconds_per_step == pytest.approx(4 * 45, rel=0.5)
    assert measured.peak_memory_bytes > 50_000_000
    assert list(tmp_path.iterdir()) == []


def test_two_processes_compute_what_one_does(llama: Path, tmp_path: Path) -> None:
    """With torch's launcher, which is what `accelerate launch` starts; on CPUs it would want MPI for more than one."""
    alone = Recorder()
    settings: dict[str, Any] = {"per_device_train_batch_size": 2, "max_steps": 4}
    examples = conversations(41)
    train(llama, tmp_path / "alone", examples=examples, callbacks=[alone], gradient_accumulation_steps=6, **settings)
    root = Path(__file__).parents[2]
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"),
        *("-m", "tests.training.two_processes", str(llama), str(tmp_path / "together")),
    ]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join((str(root), str(root / "src"))),
        "ACCELERATE_USE_CPU": "1",
    }
    environment["OMP_NUM_THREADS"] = "1"
    subprocess.run(command, check=True, timeout=100, env=environment, stderr=subprocess.PIPE)
    lines = [json.loads(line) for line in (tmp_path / "together" / "metrics.jsonl").read_text().splitlines()]
    together = [line for line in lines if line["event"] == "step"]
    assert [line["weight"] for line in together] == [done.weight for done in alone.steps]
    assert [line["loss"] for line in together] == pytest.approx(alone.losses, rel=1e-5)
    assert [line["grad_norm"] for line in together] == pytest.approx([s.grad_norm for s in alone.steps], rel=1e-3)
    assert lines[-1]["loss"] == pytest.approx(alone.ended[-1].evaluations[-1].loss, rel=1e-5)
