"""What a job's events tell, collected: curves, measurements and log lines. Grows by the events that are new."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from mini_claude.data.records import JobEvent
from mini_claude.web.page.counted import counted

Points = tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class LogLine:
    """Something that happened, in a sentence."""

    at: float  # Unix time
    text: str


@dataclass(frozen=True, slots=True)
class JobHistory:
    """`after` is the number of the last event that is in it. Points are (step, value)."""

    job_id: str
    after: int = 0
    loss: Points = ()
    held_out: Points = ()
    learning_rate: Points = ()
    log: tuple[LogLine, ...] = ()
    certificate: dict[str, Any] | None = None
    num_steps: int = 0  # of the whole run; 0: not known yet

    def taken(self, events: Sequence[JobEvent]) -> "JobHistory":
        """With these events, which follow the last one."""
        loss, held_out, rate = list(self.loss), list(self.held_out), list(self.learning_rate)
        log, certificate, num_steps = list(self.log), self.certificate, self.num_steps
        for event in events:
            data = event.data
            if event.type == "progress":
                _put(loss, data["step"], data["loss"])
                _put(rate, data["step"], data["learning_rate"])
            elif event.type == "evaluation":
                _put(held_out, data["step"], data["eval_loss"])
            elif event.type == "started":
                num_steps = data["num_steps"]
            elif event.type == "certificate":
                certificate = data
            if (line := line_of(event)) is not None:
                log.append(LogLine(event.created_at, line))
        after = events[-1].number if events else self.after
        return replace(
            self,
            after=after,
            loss=tuple(loss),
            held_out=tuple(held_out),
            learning_rate=tuple(rate),
            log=tuple(log),
            certificate=certificate,
            num_steps=num_steps,
        )


def _put(points: list[tuple[float, float]], step: float, value: float) -> None:
    """A run that goes on from a checkpoint takes some steps again: what they were before no longer counts."""
    while points and points[-1][0] >= step:
        points.pop()
    points.append((step, value))


def line_of(event: JobEvent) -> str | None:
    """What an event tells a person, or None where the curves show it."""
    data = event.data
    match event.type:
        case "state":
            return _state_line(data)
        case "started":
            return (
                f"{counted(data['num_steps'], 'step')} on {counted(data['num_train_examples'], 'example')}; "
                f"held out to measure with: {data['num_eval_examples']:,}. "
                f"{data['num_trainable_parameters']:,} numbers are trained."
            )
        case "evaluation":
            return f"Loss on held-out examples after step {data['step']:,}: {data['eval_loss']:.4f}"
        case "checkpoint":
            return f"Saved after step {data['step']:,}; from here it could go on."
        case "certificate":
            return f"Check of the result: {data['reason']}"
        case "cancel_requested":
            return "It will end after the step that is being taken."
        case "log":
            return str(data["message"])
        case _:
            return None


def _state_line(data: dict[str, Any]) -> str:
    words = {
        "pending": "Waiting for its turn.",
        "running": "Started.",
        "interrupted": "Its process is gone; it goes on from the last checkpoint.",
        "completed": "Done.",
        "cancelled": "Cancelled.",
        "failed": "Failed.",
    }
    reason = data.get("reason") or data.get("error", {}).get("message")
    word = words.get(data["state"], data["state"])
    return f"{word} ({reason})" if reason else word
