"""The jobs of a visitor and one of them in full. All of it is read from the database, so a reload shows it again.

What the visitor sees already is kept with the page, and only what differs is sent: the keyboard's focus stays, and a
curve that grows costs the events that are new.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import gradio as gr

from mini_claude.data.records import Job
from mini_claude.services.identity import Caller
from mini_claude.services.services import Services
from mini_claude.web.page.certificate import certificate_html
from mini_claude.web.page.job_history import JobHistory
from mini_claude.web.page.job_view import OPEN, curves_html, head_html, items_of, log_html
from mini_claude.web.page.pick_list import pick_list

LOOK_SECONDS: Final = 1.0
MAX_JOBS: Final = 50
EVENTS_PER_READ: Final = 500
_NOTHING: Final = '<p class="facts">Start a training, or choose one from the list.</p>'

Update = dict[gr.blocks.Block, Any]


@dataclass(frozen=True, slots=True)
class Seen:
    """What a page shows now: the job's history, and each component's value as it was sent."""

    history: JobHistory | None
    values: Mapping[str, Any]


class JobPanel:
    """The components; what happens on their events is the tab's affair."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self.timer = gr.Timer(LOOK_SECONDS, active=False)
        gr.Markdown("### Your trainings")
        self.list = pick_list("Your trainings", "None yet.", "jobs")
        self.head = gr.HTML(_NOTHING, elem_id="job-head")
        with gr.Row():
            self.cancel = gr.Button("Cancel", variant="stop", visible=False, min_width=120, elem_id="job-cancel")
            self.resume = gr.Button("Go on from where it ended", visible=False, min_width=120, elem_id="job-resume")
        self.curves = gr.HTML("", elem_id="job-curves")
        with gr.Column(visible=False, elem_id="job-result") as self.result:
            with gr.Row():
                self.compare = gr.Button(
                    "Compare before and after", variant="primary", min_width=160, elem_id="job-compare"
                )
                self.serve = gr.Button("Serve this", visible=False, min_width=160, elem_id="job-serve")
            self.answers = gr.HTML("", elem_id="job-answers")
            self.certificate = gr.HTML("", elem_id="job-certificate")
        with gr.Accordion("Log", open=True, visible=False) as self.log_box:
            self.log = gr.HTML("", max_height=240, autoscroll=True, elem_id="job-log")
        self._places: dict[str, gr.blocks.Block] = {
            "timer": self.timer,
            "list": self.list,
            "head": self.head,
            "cancel": self.cancel,
            "resume": self.resume,
            "curves": self.curves,
            "result": self.result,
            "serve": self.serve,
            "certificate": self.certificate,
            "log_box": self.log_box,
            "log": self.log,
        }
        self.outputs: list[gr.blocks.Block] = [*self._places.values(), self.answers]

    async def look(self, caller: Caller, job_id: str | None, seen: Seen | None) -> tuple[Seen, Update]:
        """The list and a job of it, as far as the page does not show them. One that is gone is none.

        Only an admin can make a result what answers everybody.
        """
        jobs = await self._services.training.list(caller, MAX_JOBS)
        job = next((each for each in jobs if each.id == job_id), None)
        known = None if seen is None else seen.history
        history = None if job is None else await self._history(caller, job, known)
        if history is not None:  # what came to an end since the list was read
            job = await self._services.training.get(caller, history.job_id)
        values = _values(jobs, job, history)
        values["serve"] = values["result"] and caller.is_admin
        before = _values((), None, None) if seen is None else seen.values
        update = {self._places[name]: _shown(name, value) for name, value in values.items() if before[name] != value}
        if (known and known.job_id) != (history and history.job_id):
            update[self.answers] = ""
        return Seen(history, values), update

    async def _history(self, caller: Caller, job: Job, known: JobHistory | None) -> JobHistory:
        history = known if known is not None and known.job_id == job.id else JobHistory(job.id)
        while events := await self._services.training.events(caller, job.id, history.after, EVENTS_PER_READ):
            history = history.taken(events)
        return history


def _values(jobs: Sequence[Job], job: Job | None, history: JobHistory | None) -> dict[str, Any]:
    values: dict[str, Any] = {
        "timer": any(each.state in OPEN for each in jobs),
        "list": items_of(jobs, None if job is None else job.id),
        "head": _NOTHING,
        "cancel": False,
        "resume": False,
        "curves": "",
        "result": False,
        "serve": False,
        "certificate": "",
        "log_box": False,
        "log": "",
    }
    if job is not None and history is not None:
        ahead = sum(each.state in OPEN and each.created_at < job.created_at for each in jobs)
        values |= {
            "head": head_html(job, ahead),
            "cancel": job.state in OPEN and not job.cancel_requested,
            "resume": job.state in ("failed", "cancelled"),
            "curves": curves_html(history),
            "result": job.state == "completed",
            "certificate": certificate_html(history.certificate),
            "log_box": True,
            "log": log_html(history),
        }
    return values


def _shown(name: str, value: Any) -> Any:
    """A value as the component takes it."""
    match name:
        case "timer":
            return gr.Timer(active=value)
        case "cancel" | "resume" | "serve":
            return gr.Button(visible=value)
        case "result":
            return gr.Column(visible=value)
        case "log_box":
            return gr.Accordion(visible=value)
        case _:
            return value
