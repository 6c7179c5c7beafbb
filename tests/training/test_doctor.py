"""The doctor shows what is learned; here with the model whose tokens are bytes."""

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mini_claude.errors import InvalidRequest
from mini_claude.models.catalog import BUILTIN
from mini_claude.training import doctor
from mini_claude.training.arguments import TrainingArguments
from mini_claude.training.doctor import examine
from mini_claude.training.doctor_report import (
    DoctorReport,
    DoctorRequest,
    Duplicate,
    Estimate,
    Examination,
    LengthCount,
    Sample,
)
from mini_claude.training.measure import Measurement
from mini_claude.types import ModelSource, ModelSpec

SETTINGS: dict[str, Any] = {"engine": "echo", "data_dir": "/nowhere"}


def request(path: Path, *, num_rows: int = 0, max_length: int = 512, **wanted: Any) -> DoctorRequest:
    examination = Examination(arguments=TrainingArguments(max_length=max_length), **wanted)
    return DoctorRequest(str(path), num_rows, BUILTIN[0], examination, SETTINGS)


def dataset(tmp_path: Path, *rows: Any) -> Path:
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path


def report_on(tmp_path: Path, *rows: Any, **options: Any) -> DoctorReport:
    return examine(request(dataset(tmp_path, *rows), num_rows=len(rows), **options))


def shown(sample: Sample, *, supervised: bool) -> str:
    return "".join(token.text for token in sample.tokens if token.supervised == supervised)


def test_the_supervised_tokens_are_the_answers_with_their_ends(tmp_path: Path) -> None:
    report = report_on(tmp_path, ["Hi", "Yo!", "And?", "Bye"], {"dialogue": ["é", "ü"]})
    first, second = report.samples
    assert shown(first, supervised=True) == "Yo!<|end|>Bye<|end|>"
    assert shown(first, supervised=False) == "<|user|>Hi<|end|><|assistant|><|user|>And?<|end|><|assistant|>"
    assert (first.row, second.row, first.part) == (1, 2, "example")
    assert "".join(token.text for token in second.tokens) == "<|user|>é<|end|><|assistant|>ü<|end|>"
    assert [token.id for token in second.tokens][1:3] == list("é".encode())
    assert report.num_examples == 2
    assert report.num_tokens == 20 + 8
    assert report.num_supervised_tokens == 8 + 3
    assert report.supervised_share == 11 / 28
    assert report.complete
    assert report.format == "dialogue"


def test_only_as_many_rows_are_shown_as_were_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [["Hi", f"answer {i}"] for i in range(10)]
    for wanted in (0, 1, 10, 50):
        path = dataset(tmp_path, *rows)
        asked = replace(request(path), wanted=Examination(num_rows=wanted))
        assert len(examine(asked).samples) == min(wanted, 10)
    monkeypatch.setattr(doctor, "MAX_SHOWN_TOKENS", 20)
    assert len(report_on(tmp_path, *rows).samples) == 2  # 15 tokens each


def test_both_answers_of_a_preference_are_shown(tmp_path: Path) -> None:
    report = report_on(tmp_path, {"prompt": "Hi", "chosen": "Good", "rejected": "Bad"})
    assert [(sample.part, shown(sample, supervised=True)) for sample in report.samples] == [
        ("chosen", "Good<|end|>"),
        ("rejected", "Bad<|end|>"),
    ]
    assert report.num_examples == 1


def test_all_of_a_plain_text_is_learned_but_its_first_token(tmp_path: Path) -> None:
    report = report_on(tmp_path, {"text": "Once"})
    tokens = report.samples[0].tokens
    assert not tokens[0].supervised
    assert all(token.supervised for token in tokens[1:])


def test_what_is_cut_off_is_told(tmp_path: Path) -> None:
    report = report_on(tmp_path, ["Hi", "x" * 100], ["Hi", "Yo"], ["y" * 100, "Yo"], max_length=16)
    assert report.num_truncated == 1
    assert report.num_truncated_tokens == 106 - 16
    assert report.longest == 106
    assert report.samples[0].truncated == 90
    assert len(report.samples[0].tokens) == 16
    assert [problem.row for problem in report.problems] == [3]
    assert "max_length 16" in report.problems[0].reason


def test_lengths_are_counted_before_the_cut_in_powers_of_two(tmp_path: Path) -> None:
    rows = [["H", "y" * n] for n in (3, 4, 5, 27, 28)]  # 5 tokens more each
    report = report_on(tmp_path, *rows, max_length=20)
    assert report.lengths == (LengthCount(8, 1), LengthCount(16, 2), LengthCount(32, 1), LengthCount(64, 1))


def test_duplicates_lead_to_the_first_of_them(tmp_path: Path) -> None:
    rows: list[Any] = [["a", "b"], ["c", "d"], {"dialogue": ["a", "b"], "id": 7}, ["a", "b "], ["a", "b"]]
    report = report_on(tmp_path, *rows)
    assert report.num_duplicates == 2
    assert report.duplicates == (Duplicate(3, 1), Duplicate(5, 1))


def test_broken_rows_are_counted_and_the_first_are_named(tmp_path: Path) -> None:
    report = report_on(tmp_path, ["Hi", "Yo"], *[["Hi"]] * 30)
    assert report.num_broken == 30
    assert [problem.row for problem in report.problems] == list(range(2, 22))
    assert report.num_rows == 31
    assert report.num_examples == 1


@pytest.mark.parametrize(
    ("rows", "options", "reason"),
    [
        ([["Hi"], ["Ho"]], {}, "row 1: it has no turn of the assistant"),
        ([["x" * 50, "Yo"]], {"max_length": 20}, "max_length 20"),
    ],
)
def test_data_that_teaches_nothing_is_refused(tmp_path: Path, rows: list[Any], options: Any, reason: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        report_on(tmp_path, *rows, **options)
    assert caught.value.code == "no_supervised_tokens"
    assert reason in caught.value.message


def test_when_time_is_up_the_report_says_how_far_it_came(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(1000))
    monkeypatch.setattr(doctor, "time", SimpleNamespace(monotonic=lambda: float(next(clock))))
    monkeypatch.setattr(doctor, "EXAMINED_SECONDS", 3.0)
    report = report_on(tmp_path, *[["Hi", "Yo"]] * 100)
    assert report.num_rows == 32
    assert not report.complete


def test_a_model_without_weights_cannot_be_measured(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="no weights"):
        report_on(tmp_path, ["Hi", "Yo"], measure=True)


@pytest.mark.real_model
def test_the_tokens_of_a_real_model_are_those_of_its_chat(tmp_path: Path, smollm2_folder: Path) -> None:
    spec = ModelSpec("mine", "causal_lm", (ModelSource("folder", str(smollm2_folder)),))
    path = dataset(tmp_path, ["Hi 🌍", "Yo"])
    report = examine(DoctorRequest(str(path), 1, spec, Examination(), {"data_dir": str(tmp_path)}))
    sample = report.samples[0]
    assert shown(sample, supervised=True) == "Yo<|im_end|>"
    assert shown(sample, supervised=False).endswith("<|im_start|>user\nHi 🌍<|im_end|>\n<|im_start|>assistant\n\n")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    """A random model that is trained in milliseconds."""
    import torch

    from .tiny_adapters import save_base

    torch.set_num_threads(1)
    folder = save_base(tmp_path_factory.mktemp("tiny"))
    return ModelSpec("tiny", "causal_lm", (ModelSource("folder", str(folder)),))


@pytest.mark.parametrize("row", [["the cat", "sat"], {"prompt": "the cat", "chosen": "sat", "rejected": "ate"}])
def test_an_estimate_comes_from_real_steps(tmp_path: Path, tiny: ModelSpec, row: Any) -> None:
    path = dataset(tmp_path, *[row] * 40)
    arguments = TrainingArguments(per_device_train_batch_size=4, max_length=64, num_train_epochs=2.0)
    wanted = Examination(num_rows=0, measure=True, arguments=arguments)
    estimate = examine(DoctorRequest(str(path), 40, tiny, wanted, {"data_dir": str(tmp_path)})).estimate
    assert estimate is not None
    assert estimate.num_steps == pytest.approx(2 * 36 / 4, rel=0.1)  # a tenth is held out
    assert estimate.seconds == pytest.approx(estimate.num_steps * estimate.seconds_per_step, rel=0.3)
    assert estimate.peak_memory_bytes > 50_000_000


def test_an_estimate_is_made_of_what_was_measured(
    tmp_path: Path, tiny: ModelSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[TrainingArguments] = []

    def measured(folder: Path, examples: Any, lora: Any, arguments: TrainingArguments, num_steps: int) -> Measurement:
        taken.append(arguments)
        return Measurement(tokens_per_second=10.0, seconds_per_step=2.0, peak_memory_bytes=7)

    monkeypatch.setattr("mini_claude.training.measure.measure", measured)
    path = dataset(tmp_path, *[["the cat", "sat"]] * 10)

    def estimate(num_rows: int = 10, **arguments: Any) -> tuple[DoctorReport, Estimate]:
        wanted = Examination(num_rows=0, measure=True, arguments=TrainingArguments(**arguments))
        report = examine(DoctorRequest(str(path), num_rows, tiny, wanted, {"data_dir": str(tmp_path)}))
        assert report.estimate is not None
        return report, report.estimate

    report, by_epochs = estimate(num_train_epochs=4.0, eval_ratio=0.2, gradient_accumulation_steps=3)
    assert taken[-1].gradient_accumulation_steps == 1
    assert by_epochs.seconds_per_step == 6.0
    training = report.num_tokens * 0.8 * 4 / 10
    assert by_epochs.num_steps == math.ceil(training / 6)
    assert by_epochs.seconds == pytest.approx(training + 2 * report.num_tokens * 0.2 / 10 / 2)
    assert by_epochs.peak_memory_bytes == 7

    _, of_more = estimate(num_rows=30, num_train_epochs=4.0, eval_ratio=0.2)
    assert of_more.seconds == pytest.approx(3 * by_epochs.seconds)  # only a third of the rows was looked at

    _, by_steps = estimate(max_steps=50, eval_ratio=0.0)
    assert (by_steps.num_steps, by_steps.seconds) == (50, 100.0)
    _, with_evaluations = estimate(max_steps=50, eval_ratio=0.5, eval_steps=10)
    assert with_evaluations.seconds == pytest.approx(100 + 7 * report.num_tokens * 0.5 / 10 / 2)
