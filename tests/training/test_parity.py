"""What the certificate concludes from what the forms say; the forms here are made of numbers."""

import json
from collections.abc import Sequence
from dataclasses import asdict

import numpy as np
import pytest

from mini_claude.errors import InvalidRequest, ModelLoadError, UnsupportedExport
from mini_claude.training.parity import (
    MAX_POSITIONS,
    MAX_SEQUENCES,
    MAX_TOKENS,
    Certificate,
    Form,
    LogProbs,
    Readings,
    Window,
    certify,
    windows_of,
)

VOCAB_SIZE = 200
WINDOWS = windows_of([range(30), range(5, 25)])
Rows = Sequence[LogProbs]


def normalized(rows: LogProbs) -> LogProbs:
    result: LogProbs = (rows - np.logaddexp.reduce(rows, axis=1, keepdims=True)).astype(np.float32)
    return result


def random_rows(seed: int) -> Rows:
    generator = np.random.default_rng(seed)
    shapes = [(len(window.token_ids) - window.first, VOCAB_SIZE) for window in WINDOWS]
    return [normalized(generator.normal(size=shape).astype(np.float32)) for shape in shapes]


BASE = random_rows(1)
TUNED = [normalized(base + 0.5 * noise) for base, noise in zip(BASE, random_rows(2), strict=True)]


def moved(rows: Rows, by: float) -> Rows:
    """One log-probability of the first window, among the most probable ones, is another."""
    first = rows[0].copy()
    first[3, first[3].argmax()] += by
    return [first, *rows[1:]]


def top_only(rows: Rows, count: int = 64) -> Rows:
    told = [np.where(row >= np.sort(row, axis=1)[:, -count][:, None], row, np.nan) for row in rows]
    return [row.astype(np.float32) for row in told]


def form(tuned: Rows, base: Rows | None = None, tolerance: float = 1e-3, noise_multiple: float | None = None) -> Form:
    return Form("engine", tolerance, lambda windows: Readings(tuned, base), noise_multiple)


def certificate(*forms: Form, tuned: Rows = TUNED, base: Rows = BASE) -> Certificate:
    trainer = Form("trainer", 0.0, lambda windows: Readings(tuned, base))
    return certify(trainer, forms, WINDOWS, identity={"base_sha256": "ab"}, environment={"torch": "2"})


def test_forms_that_agree_pass_with_every_number() -> None:
    result = certificate(form(moved(TUNED, 2e-4), BASE))
    assert result.passed
    step = result.steps[0]
    assert (step.state, step.reason, step.top1_agreement) == ("passed", None, 1.0)
    assert step.max_difference == pytest.approx(2e-4, rel=0.1)
    assert step.base_max_difference == 0.0
    assert result.max_effect is not None
    assert result.max_effect > 0.5
    assert (result.num_sequences, result.num_positions) == (2, 24)


@pytest.mark.parametrize("by", [2e-3, -2e-3, 0.5, float("nan"), float("inf")])
def test_one_number_out_of_tolerance_fails(by: float) -> None:
    result = certificate(form(moved(TUNED, by), BASE))
    assert not result.passed
    assert result.steps[0].state == "failed"
    assert result.reason.startswith("engine: The largest difference is")


def test_a_form_without_the_adapter_fails() -> None:
    assert not certificate(form(BASE, BASE)).passed


def test_a_base_that_answers_as_the_tuned_model_fails() -> None:
    result = certificate(form(TUNED, TUNED))
    assert not result.passed
    assert "Without the adapter the largest difference" in result.reason


@pytest.mark.parametrize("by", [0.0, 1e-6, 0.009])
def test_an_adapter_without_effect_fails_though_all_forms_agree(by: float) -> None:
    tuned = moved(BASE, by)
    result = certificate(form(tuned, BASE), tuned=tuned)
    assert not result.passed
    assert result.reason.startswith("The adapter has no effect")


def test_a_trainer_without_numbers_fails() -> None:
    result = certificate(form(TUNED), tuned=[row * np.float32("nan") for row in TUNED])
    assert not result.passed
    assert "not finite" in result.reason
    assert result.max_effect is None


def test_only_what_a_form_tells_is_compared() -> None:
    result = certificate(form(top_only(TUNED), top_only(BASE)))
    assert result.passed
    assert result.steps[0].max_difference == 0.0


def test_a_token_that_a_form_should_have_told_of_counts() -> None:
    hidden = [row.copy() for row in top_only(TUNED)]
    best = hidden[0][0]
    gap = np.nanmax(best) - np.nanmin(best)
    best[np.nanargmax(best)] = np.nan
    result = certificate(form(hidden))
    assert not result.passed
    assert result.steps[0].max_difference == pytest.approx(float(gap))


def test_a_position_that_a_form_does_not_tell_of_fails() -> None:
    silent = [row.copy() for row in TUNED]
    silent[1][2] = np.nan
    assert not certificate(form(silent)).passed


def test_a_vocabulary_that_was_filled_up_is_compared_without_the_filling() -> None:
    narrow = [normalized(row[:, : VOCAB_SIZE - 9]) for row in TUNED]
    result = certificate(form(narrow))
    assert result.passed
    assert result.steps[0].max_difference == pytest.approx(0.0, abs=1e-5)


def test_an_adapter_that_moves_less_than_a_form_can_show_is_no_proof_of_it() -> None:
    tuned = moved(BASE, 0.03)
    result = certificate(form(tuned), form(BASE, tolerance=0.02), tuned=tuned)
    assert [step.state for step in result.steps] == ["passed", "failed"]
    result = certificate(form(tuned), form(moved(BASE, 0.015), tolerance=0.02), tuned=tuned)
    assert [step.state for step in result.steps] == ["passed", "skipped"]


def rounded(rows: Rows, by: float, seed: int) -> Rows:
    return [row + by * noise for row, noise in zip(rows, random_rows(seed), strict=True)]


def test_a_form_that_rounds_is_measured_by_its_own_rounding() -> None:
    coarse_base = rounded(BASE, 0.01, 5)
    good = form(rounded(TUNED, 0.01, 6), coarse_base, noise_multiple=2.0)
    bad = form(rounded(TUNED, 0.04, 6), coarse_base, noise_multiple=2.0)
    none = form(coarse_base, coarse_base, noise_multiple=2.0)
    assert [step.state for step in certificate(good, bad, none).steps] == ["passed", "failed", "failed"]


def test_a_form_that_rounds_away_what_the_adapter_does_is_skipped_and_says_so() -> None:
    coarse = form(rounded(TUNED, 1.0, 6), rounded(BASE, 1.0, 5), noise_multiple=2.0)
    result = certificate(form(TUNED), coarse)
    assert result.passed
    assert result.steps[1].state == "skipped"
    assert "than this file rounds" in str(result.steps[1].reason)


def test_a_form_that_cannot_be_made_fails_or_is_skipped_with_its_reason() -> None:
    def broken(windows: Sequence[Window]) -> Readings:
        raise ModelLoadError("No such layer.")

    def unsupported(windows: Sequence[Window]) -> Readings:
        raise UnsupportedExport("Not in this format.")

    result = certificate(Form("engine", 1e-3, broken), Form("gguf", 1e-3, unsupported))
    assert [(step.state, step.reason) for step in result.steps] == [
        ("failed", "No such layer."),
        ("skipped", "Not in this format."),
    ]
    assert result.reason == "engine: No such layer."


def test_every_certificate_is_json() -> None:
    for result in (certificate(form(TUNED, BASE)), certificate(form(moved(TUNED, float("nan"))))):
        text = json.dumps(asdict(result), allow_nan=False)
        assert json.loads(text)["identity"] == {"base_sha256": "ab"}


def test_windows_are_bounded_and_empty_sequences_left_out() -> None:
    windows = windows_of([[], [1], range(500), *([[1, 2, 3]] * 20)])
    assert len(windows) == MAX_SEQUENCES
    assert windows[0] == Window((1,), 0)
    assert len(windows[1].token_ids) == MAX_TOKENS
    assert windows[1].first == MAX_TOKENS - MAX_POSITIONS
    with pytest.raises(InvalidRequest, match="no held-out tokens"):
        windows_of([[]])
