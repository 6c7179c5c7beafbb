"""Killed at any step and started again, a run ends with the weights of one that was never killed, bit for bit."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mini_claude.errors import InvalidRequest, StorageError
from mini_claude.training.arguments import LoraSettings
from mini_claude.training.callbacks import Callback, Control, StepDone

from .faulty_disk import FaultyDisk
from .tiny_training import (
    KillAfter,
    KilledError,
    Recorder,
    conversations,
    preferences,
    same,
    save_model,
    train,
    weights,
)

NUM_STEPS = 6
LORA = LoraSettings(r=4, lora_dropout=0.2)  # dropout, so that random numbers matter


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return save_model(tmp_path_factory.mktemp("llama"))


def settings(**changes: Any) -> dict[str, Any]:
    return {"max_steps": NUM_STEPS, "save_steps": 1, "eval_steps": 2, **changes}


def run(model: Path, job: Path, *callbacks: Callback, **changes: Any) -> dict[str, torch.Tensor]:
    return weights(train(model, job, lora=LORA, callbacks=callbacks, **settings(**changes)))


@pytest.fixture(scope="module")
def uninterrupted(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    return run(llama, tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize("save_steps", [1, 4])
@pytest.mark.parametrize("step", range(1, NUM_STEPS + 1))
def test_killed_at_any_step(
    llama: Path, tmp_path: Path, uninterrupted: dict[str, torch.Tensor], step: int, save_steps: int
) -> None:
    with pytest.raises(KilledError):
        run(llama, tmp_path, KillAfter(step), save_steps=save_steps)
    torch.manual_seed(99)  # another process has other random numbers
    random.seed(99)
    np.random.seed(99)
    recorder = Recorder()
    assert same(run(llama, tmp_path, recorder, save_steps=save_steps), uninterrupted)
    expected = (step - 1) // save_steps * save_steps
    assert recorder.started[0].resumed_from == (expected or None)
    assert [done.step for done in recorder.steps] == list(range(expected + 1, NUM_STEPS + 1))


def test_killed_again_and_again(llama: Path, tmp_path: Path, uninterrupted: dict[str, torch.Tensor]) -> None:
    for step in range(2, NUM_STEPS + 1):
        with pytest.raises(KilledError):
            run(llama, tmp_path, KillAfter(step))
    assert same(run(llama, tmp_path), uninterrupted)


@pytest.mark.parametrize("changes", [{"method": "full"}, {"objective": "dpo"}, {"batching": "packed"}])
def test_every_kind_of_run_goes_on_exactly(llama: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    examples = preferences(30) if "objective" in changes else conversations(30)

    def once(job: str, *callbacks: Callback) -> dict[str, torch.Tensor]:
        result = train(
            llama, tmp_path / job, examples=examples, lora=LORA, callbacks=callbacks, **settings(max_steps=4, **changes)
        )
        return weights(result)

    with pytest.raises(KilledError):
        once("killed", KillAfter(3))
    assert same(once("killed"), once("whole"))


def test_the_metrics_file_is_that_of_an_uninterrupted_run(llama: Path, tmp_path: Path) -> None:
    with pytest.raises(KilledError):
        run(llama, tmp_path / "killed", KillAfter(4), save_steps=2)
    with (tmp_path / "killed" / "metrics.jsonl").open("a") as file:
        file.write('{"event": "st')  # killed in mid-line
    run(llama, tmp_path / "killed", save_steps=2)
    run(llama, tmp_path / "whole", save_steps=2)

    def lines(job: str) -> list[tuple[object, ...]]:
        records = map(json.loads, (tmp_path / job / "metrics.jsonl").read_text().splitlines())
        return [(record["event"], record["step"], record["loss"]) for record in records]

    assert lines("killed") == lines("whole")


@pytest.mark.parametrize("name", ["weights.safetensors", "optimizer.safetensors", "state.json", "manifest.json"])
def test_a_flipped_byte_costs_a_checkpoint_and_no_exactness(
    llama: Path, tmp_path: Path, uninterrupted: dict[str, torch.Tensor], name: str
) -> None:
    with pytest.raises(KilledError):
        run(llama, tmp_path, KillAfter(5))
    path = tmp_path / "checkpoints" / "step-00000004" / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
    recorder = Recorder()
    assert same(run(llama, tmp_path, recorder), uninterrupted)
    (started,) = recorder.started
    assert started.resumed_from == 3
    assert [problem.folder.name for problem in started.damaged] == ["step-00000004"]


def test_a_disk_that_fills_up_fails_the_run_and_later_it_goes_on(
    llama: Path, tmp_path: Path, uninterrupted: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At every seventh write of the whole run, in the same folder, until there is room."""
    failures = 0
    for fails_at in range(20, 2000, 7):
        with monkeypatch.context() as patch:
            FaultyDisk(patch, tmp_path, fails_at)
            try:
                final = run(llama, tmp_path)
                break
            except StorageError as error:
                failures += error.code == "disk_full"
    assert failures > 3
    assert same(final, uninterrupted)


def test_a_finished_run_that_is_run_again_takes_no_step_and_has_the_same_result(
    llama: Path, tmp_path: Path, uninterrupted: dict[str, torch.Tensor]
) -> None:
    recorder = Recorder()
    run(llama, tmp_path)
    assert same(run(llama, tmp_path, recorder), uninterrupted)
    assert recorder.steps == []


def test_killed_after_early_stopping_was_decided_it_stops_again(llama: Path, tmp_path: Path) -> None:
    worse: dict[str, Any] = {
        "max_steps": 30,
        "eval_steps": 1,
        "learning_rate": 0.2,
        "lr_scheduler_type": "constant",
        "early_stopping_patience": 2,
        "save_total_limit": 40,
    }
    whole = train(llama, tmp_path / "whole", lora=LORA, **settings(**worse))

    class KillAtSave(Callback):
        def on_end(self, state: object, stop_reason: object) -> None:
            raise KilledError

    with pytest.raises(KilledError):
        run(llama, tmp_path / "killed", KillAtSave(), **worse)
    recorder = Recorder()
    resumed = train(llama, tmp_path / "killed", lora=LORA, callbacks=[recorder], **settings(**worse))
    assert recorder.steps == []
    assert resumed.stop_reason == whole.stop_reason == "early_stopping"
    assert resumed.weights_step == whole.weights_step
    assert same(weights(resumed), weights(whole))


@pytest.mark.parametrize("changes", [{"learning_rate": 1e-3}, {"seed": 5}, {"max_steps": 9}])
def test_checkpoints_of_another_run_are_not_gone_on_from(llama: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(KilledError):
        run(llama, tmp_path, KillAfter(3))
    with pytest.raises(InvalidRequest, match="other data, arguments or processes") as caught:
        run(llama, tmp_path, **changes)
    assert caught.value.code == "another_run"


def test_how_often_is_saved_may_change(llama: Path, tmp_path: Path, uninterrupted: dict[str, torch.Tensor]) -> None:
    with pytest.raises(KilledError):
        run(llama, tmp_path, KillAfter(3))
    assert same(run(llama, tmp_path, save_steps=4, save_total_limit=1), uninterrupted)


def test_an_observer_can_ask_for_a_save(llama: Path, tmp_path: Path) -> None:
    class SaveAtTwo(Callback):
        def on_step(self, done: StepDone, control: Control) -> None:
            control.save = done.step == 2

    with pytest.raises(KilledError):
        run(llama, tmp_path, SaveAtTwo(), KillAfter(5), save_steps=1000)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000002"]
