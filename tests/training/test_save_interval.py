"""When a save is due, by a clock that the test moves."""

from mini_claude.training.arguments import TrainingArguments
from mini_claude.training.save_interval import MAX_SECONDS_LOST, MAX_SHARE_OF_TIME, SaveInterval


def simulate(interval: SaveInterval, *, step_seconds: float, save_seconds: float, hours: float) -> tuple[float, float]:
    """(the most seconds that a crash would lose, the share of time that went into saving)."""
    now = saved_at = saving = worst = 0.0
    step = 0
    while now < hours * 3600:
        now += step_seconds
        step += 1
        worst = max(worst, now - saved_at)
        if interval.is_due(step, now):
            now += save_seconds
            saving += save_seconds
            saved_at = now
            interval.saved(save_seconds, now)
    return worst, saving / now


def test_chosen_by_itself_it_keeps_both_promises_for_any_speed() -> None:
    for step_seconds in (0.01, 1.0, 20.0, 60.0):
        for save_seconds in (0.001, 0.1, 1.0, 2.0):
            interval = SaveInterval(TrainingArguments(), 0.0)
            worst, share = simulate(interval, step_seconds=step_seconds, save_seconds=save_seconds, hours=3)
            assert worst <= MAX_SECONDS_LOST, (step_seconds, save_seconds)
            assert share <= max(MAX_SHARE_OF_TIME, save_seconds / step_seconds) * 1.05, (step_seconds, save_seconds)


def test_when_saving_is_slow_losing_little_comes_first() -> None:
    worst, share = simulate(SaveInterval(TrainingArguments(), 0.0), step_seconds=1.0, save_seconds=6.0, hours=3)
    assert worst <= MAX_SECONDS_LOST
    assert MAX_SHARE_OF_TIME < share < 0.06


def test_by_steps() -> None:
    interval = SaveInterval(TrainingArguments(save_steps=3), 0.0)
    assert [step for step in range(1, 10) if interval.is_due(step, 1e6 * step)] == [3, 6, 9]


def test_by_minutes_the_next_step_counts_too() -> None:
    interval = SaveInterval(TrainingArguments(save_minutes=1.0), 0.0)
    due = []
    for step in range(1, 20):
        if interval.is_due(step, 10.0 * step):
            due.append(step)
            interval.saved(0.1, 10.0 * step)
    assert due == [6, 12, 18]
