"""Jobs as HTML: the entries of the list, how far one is, its curves, its log, its result in answers."""

import time
from collections.abc import Sequence
from html import escape
from typing import Any, Final

from mini_claude.data.records import Job, JobState
from mini_claude.services.before_after import BeforeAfter
from mini_claude.training.doctor_report import Estimate
from mini_claude.web.page.curve import curve
from mini_claude.web.page.job_history import JobHistory

OPEN: Final[tuple[JobState, ...]] = ("pending", "running", "interrupted")
_STATES: Final[dict[JobState, tuple[str, str]]] = {
    "pending": ("waiting", ""),
    "running": ("running", ""),
    "interrupted": ("interrupted, goes on soon", ""),
    "completed": ("done", "good"),
    "failed": ("failed", "bad"),
    "cancelled": ("cancelled", ""),
}


def items_of(jobs: Sequence[Job], current: str | None) -> list[dict[str, Any]]:
    """The value of the list of jobs."""
    return [
        {
            "id": job.id,
            "title": job.adapter or job.spec.adapter_name,
            "note": f"{_STATES[job.state][0]}{_percent(job)} · {job.spec.dataset_name} · {_moment(job.created_at)}",
            "current": "true" if job.id == current else "false",
        }
        for job in jobs
    ]


def _moment(at: float) -> str:
    return time.strftime("%d %b, %H:%M", time.localtime(at))


def _percent(job: Job) -> str:
    if job.state != "running" or not job.progress:
        return ""
    return f" {100 * job.progress['step'] // job.progress['num_steps']} %"


def head_html(job: Job, ahead: int) -> str:
    """State, progress bar and numbers; `ahead` is how many jobs of the visitor's come before a waiting one."""
    word, tone = _STATES[job.state]
    word = "ending" if job.cancel_requested and job.state == "running" else word
    parts = [
        f"<h3>{escape(job.spec.adapter_name)} "
        f'<span class="badge {tone}" id="job-state">{escape(word)}</span></h3>'
        f"<p>{escape(job.spec.model_name)} learns from {escape(job.spec.dataset_name)}</p>"
    ]
    if job.state == "pending":
        parts.append(f"<p>{f'{ahead} of your jobs come first.' if ahead else 'It starts as soon as it can.'}</p>")
    if job.error is not None:
        parts.append(f"<p class='wrong'>{escape(job.error[1].message)}</p>")
    return "".join(parts) + _progress(job)


def _progress(job: Job) -> str:
    progress = job.progress
    if not progress:
        return ""
    step, num_steps = progress["step"], progress["num_steps"]
    facts = [f"step {step:,} of {num_steps:,}", f"pass {progress['epoch']:.1f}", f"loss {progress['loss']:.3f}"]
    if job.state == "running":
        facts.append(f"{progress['tokens_per_second']:,.0f} tokens/s")
        facts.append(f"{duration(progress['seconds_left'])} left" if step < num_steps else "checking the result")
    if job.started_at is not None:
        facts.append(f"took {duration(job.ended_at - job.started_at)}" if job.ended_at else "")
    return (
        f'<div class="progress" role="progressbar" aria-label="Progress" aria-valuemax="{num_steps}" '
        f'aria-valuenow="{step}"><span style="width:{100 * step / num_steps:.1f}%"></span></div>'
        f"<p class='facts'>{' · '.join(fact for fact in facts if fact)}</p>"
    )


def curves_html(history: JobHistory) -> str:
    """Loss and learning rate, once there is a point."""
    if not history.loss and not history.held_out:
        return ""
    loss = {"training": history.loss, "held-out": history.held_out}
    return (
        '<div class="plots">'
        + curve("Loss: how surprised the model is by the right words (lower is better)", loss, history.num_steps)
        + curve("Learning rate: how large the steps are", {"learning rate": history.learning_rate}, history.num_steps)
        + "</div>"
    )


def log_html(history: JobHistory) -> str:
    """Its lines with their times, which are the server's."""
    lines = "".join(
        f"<li><time>{time.strftime('%H:%M:%S', time.localtime(line.at))}</time> {escape(line.text)}</li>"
        for line in history.log
    )
    return f'<ol class="log">{lines}</ol>'


def answers_html(answers: Sequence[BeforeAfter], job: Job) -> str:
    """What both models say to the same questions."""
    return "".join(
        f"<article class='before-after'><h4>{escape(answer.question)}</h4><dl>"
        f"<dt>before ({escape(job.spec.model_name)})</dt><dd>{escape(answer.before)}</dd>"
        f"<dt>after ({escape(job.adapter or '')})</dt><dd>{'…' if answer.after is None else escape(answer.after)}</dd>"
        f"<dt>the data says</dt><dd>{escape(answer.expected)}</dd></dl></article>"
        for answer in answers
    )


def estimate_html(estimate: Estimate) -> str:
    """What a job would cost."""
    return (
        f"<p><b>About {duration(estimate.seconds)}</b> for {estimate.num_steps:,} steps "
        f"({estimate.tokens_per_second:,.0f} tokens/s) and <b>{estimate.peak_memory_bytes / 1e9:.1f} GB</b> of memory, "
        "measured with two real steps on this machine. The check of the result at the end comes on top.</p>"
    )


def duration(seconds: float) -> str:
    """For people."""
    seconds = round(seconds)
    if seconds < 90:
        return f"{seconds} s"
    if seconds < 5400:
        return f"{round(seconds / 60)} min"
    return f"{seconds // 3600} h {seconds % 3600 // 60} min"
