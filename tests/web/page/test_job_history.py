"""What a job's events add up to, and how it is drawn."""

from typing import Any

import pytest

from mini_claude.data.records import JobEvent
from mini_claude.web.page.curve import MAX_POINTS, curve, number, thinned
from mini_claude.web.page.job_history import JobHistory, line_of
from mini_claude.web.page.job_view import curves_html, duration, log_html


def event(number: int, kind: str, **data: Any) -> JobEvent:
    return JobEvent(number, kind, data, 0.0)


def step(number: int, step: int, loss: float) -> JobEvent:
    return event(number, "progress", step=step, loss=loss, learning_rate=loss / 10)


def test_curves_grow_by_the_events_that_are_new() -> None:
    history = JobHistory("j").taken([step(1, 1, 3.0), event(2, "evaluation", step=1, eval_loss=2.5)])
    history = history.taken([step(3, 2, 2.0)])
    assert history.loss == ((1, 3.0), (2, 2.0))
    assert history.held_out == ((1, 2.5),)
    assert history.learning_rate[-1] == (2, 0.2)
    assert history.after == 3
    assert history.taken([]) == history


def test_steps_that_are_taken_again_after_a_checkpoint_replace_what_they_were() -> None:
    history = JobHistory("j").taken([step(1, 1, 3.0), step(2, 2, 2.0), step(3, 3, 1.0)])
    assert history.taken([step(4, 2, 2.5)]).loss == ((1, 3.0), (2, 2.5))


@pytest.mark.parametrize(
    ("kind", "data", "words"),
    [
        ("state", {"state": "pending", "reason": "resumed"}, "Waiting for its turn. (resumed)"),
        ("state", {"state": "failed", "error": {"code": "x", "message": "No room."}}, "Failed. (No room.)"),
        ("log", {"message": "Loading."}, "Loading."),
        ("checkpoint", {"step": 4, "seconds": 0.1}, "Saved after step 4; from here it could go on."),
        ("progress", {"step": 1}, None),
    ],
)
def test_an_event_is_told_in_a_sentence(kind: str, data: dict[str, Any], words: str | None) -> None:
    assert line_of(event(1, kind, **data)) == words


def test_what_a_log_says_is_shown_and_never_obeyed() -> None:
    assert "&lt;b&gt;" in log_html(JobHistory("j").taken([event(1, "log", message="<b>")]))


def test_a_curve_has_every_line_with_its_latest_value() -> None:
    started = event(1, "started", num_steps=10, num_train_examples=1, num_eval_examples=1, num_trainable_parameters=1)
    html = curves_html(JobHistory("j").taken([started, step(2, 5, 1.25), event(3, "evaluation", step=0, eval_loss=4)]))
    assert html.count("<polyline") == 3
    assert "step 10" in html
    assert "<b>1.25</b>" in html
    assert curves_html(JobHistory("j")) == ""


def test_a_curve_without_a_point_and_one_of_zeros_are_drawn() -> None:
    assert "–" in curve("t", {"a": (), "b": ((1, 0.0),)}, 0)


def test_a_long_line_is_thinned_and_keeps_its_ends() -> None:
    points = [(float(index), 0.0) for index in range(10_000)]
    kept = thinned(points)
    assert len(kept) == MAX_POINTS
    assert (kept[0], kept[-1]) == (points[0], points[-1])


@pytest.mark.parametrize(("value", "shown"), [(0.0, "0"), (0.000123, "1.2e-04"), (0.25, "0.25"), (1234.0, "1.23e+03")])
def test_numbers_at_the_axis_are_short(value: float, shown: str) -> None:
    assert number(value) == shown


@pytest.mark.parametrize(("seconds", "shown"), [(5.2, "5 s"), (150, "2 min"), (7300, "2 h 1 min")])
def test_durations_are_told_as_people_say_them(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown
