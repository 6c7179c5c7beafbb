"""The Train tab: what to train on what, what it will cost, and how the visitor's trainings are doing."""

from collections.abc import AsyncIterator
from typing import Any, Final

import gradio as gr

from mini_claude.data.records import Job
from mini_claude.errors import InvalidRequest
from mini_claude.services.before_after import BeforeAfter
from mini_claude.services.demo import submit_demo
from mini_claude.services.identity import Caller
from mini_claude.services.services import Services
from mini_claude.training.arguments import TrainingArguments
from mini_claude.training.doctor_report import Examination
from mini_claude.web.page.data import DataTab, dataset_of
from mini_claude.web.page.job_panel import JobPanel, Seen
from mini_claude.web.page.job_view import answers_html, estimate_html
from mini_claude.web.page.training_form import TrainingForm
from mini_claude.web.page.visitor import admin_visitor, event, stream, tell, visitor

LABEL: Final = "Train"
_QUIET: Final[dict[str, Any]] = {"show_progress": "hidden", "api_visibility": "private"}
_BUSY: Final[dict[str, Any]] = {"show_progress": "minimal", "api_visibility": "private"}
_TO_JOB: Final = "() => document.querySelector('#job-head').scrollIntoView({block: 'nearest'})"

Here = dict[str, Any]
Update = dict[gr.blocks.Block, Any]


class TrainTab:
    """Built inside of a tab; `start` afterwards wires what happens when the page opens.

    `here` keeps in the browser which job is shown.
    """

    def __init__(self, services: Services, here: gr.BrowserState) -> None:
        self._services = services
        self.here = here
        self.seen = gr.State(None)
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                self.form = TrainingForm(services)
            with gr.Column(scale=3, min_width=320):
                self.panel = JobPanel(services)
        self._jobs: list[gr.blocks.Block] = [self.here, self.seen, *self.panel.outputs]
        self._all: list[gr.blocks.Block] = [*self._jobs, *self.form.fitted]
        self._wire()

    def start(self, page: gr.Blocks, tabs: gr.Tabs, data: DataTab) -> None:
        """The job from before, and what happened meanwhile; a running job is looked at every second.

        "Train on this" in `data` leads here.
        """
        look = [self.form.dataset, self.form.model, self.here, self.seen]
        page.load(self._restore, look, self._all, **_QUIET)
        tabs.select(self._opened, look, self._all, **_QUIET)
        data.train.click(self._take, [data.here, self.form.model], self.form.fitted, **_QUIET).success(
            lambda: gr.Tabs(selected="train"), None, tabs, **_QUIET
        )
        self.panel.timer.tick(self._tick, [self.here, self.seen], self._jobs, **_QUIET)

    def _wire(self) -> None:
        form, panel = self.form, self.panel
        look: list[gr.components.Component] = [self.here, self.seen]
        form.dataset.input(self._choose_dataset, form.dataset, form.fitted, **_QUIET)
        form.estimate.click(self._estimate, form.inputs, form.estimated, **_BUSY)
        for shown in (
            form.start.click(self._start, [self.seen, *form.inputs], self._jobs, **_QUIET),
            form.demo.click(self._demo, [self.seen, form.model], self._all, **_QUIET),
            panel.list.select(self._open, self.seen, self._jobs, **_QUIET),
        ):
            shown.success(None, None, None, js=_TO_JOB)
        panel.cancel.click(self._cancel, look, self._jobs, **_QUIET)
        panel.resume.click(self._resume, look, self._jobs, **_QUIET)
        panel.compare.click(self._compare, self.here, panel.answers, **_BUSY)
        panel.serve.click(self._serve, self.here, None, **_QUIET)

    # --- showing ---

    async def _show(self, caller: Caller, job_id: str | None, seen: Seen | None) -> Update:
        seen, update = await self.panel.look(caller, job_id, seen)
        return {self.seen: seen, **update}

    async def _look(self, caller: Caller, job_id: str, seen: Seen | None) -> Update:
        """The same, and from now on this job is the one that is shown."""
        return {self.here: {"job": job_id}, **await self._show(caller, job_id, seen)}

    async def _choose(self, caller: Caller, dataset: str | None, model: str | None) -> Update:
        """The form with this dataset and model."""
        return await self.form.choices(caller, await self._services.datasets.list(caller), dataset, model)

    @event
    async def _restore(
        self, request: gr.Request, dataset: str | None, model: str | None, here: Here, seen: Seen | None
    ) -> Update:
        caller = visitor(request)
        # `here` is not written: a tab that is opened before the browser was asked must not make it forget.
        return {**await self._show(caller, here.get("job"), seen), **await self._choose(caller, dataset, model)}

    @event
    async def _opened(
        self,
        request: gr.Request,
        tab: gr.SelectData,
        dataset: str | None,
        model: str | None,
        here: Here,
        seen: Seen | None,
    ) -> Update:
        return await self._restore(request, dataset, model, here, seen) if tab.value == LABEL else {self.seen: seen}

    @event
    async def _tick(self, request: gr.Request, here: Here, seen: Seen | None) -> Update:
        return await self._show(visitor(request), here.get("job"), seen)

    # --- events: the form ---

    @event
    async def _choose_dataset(self, request: gr.Request, name: str | None) -> Update:
        dataset = await self._services.datasets.get(visitor(request), name) if name else None
        return self.form.fit(dataset)

    @event
    async def _take(self, request: gr.Request, here: Here, model: str | None) -> Update:
        return await self._choose(visitor(request), dataset_of(here), model)

    @stream
    async def _estimate(
        self, request: gr.Request, dataset: str | None, model: str | None, _adapter: str, *settings: Any
    ) -> AsyncIterator[str]:
        lora, arguments = self.form.settings(settings)
        _chosen(dataset)
        yield '<p class="facts">A few steps are tried out, which takes a minute or so …</p>'
        wanted = Examination(0, measure=True, lora=lora, arguments=arguments)
        report = await self._services.datasets.preview(visitor(request), _chosen(dataset), model, wanted)
        assert report.estimate is not None
        yield estimate_html(report.estimate)

    @event
    async def _start(
        self,
        request: gr.Request,
        seen: Seen | None,
        dataset: str | None,
        model: str | None,
        adapter: str,
        *settings: Any,
    ) -> Update:
        caller = visitor(request)
        lora, arguments = self.form.settings(settings)
        await self._require_usable(caller, _chosen(dataset), arguments)
        job, _ = await self._services.training.submit(
            caller,
            model=model,
            dataset=_chosen(dataset),
            adapter=adapter.strip() or None,
            lora=lora,
            arguments=arguments,
        )
        return await self._look(caller, job.id, seen)

    async def _require_usable(self, caller: Caller, name: str, arguments: TrainingArguments) -> None:
        """Raise `InvalidRequest` for what is known of the rows before any trainer starts."""
        dataset = await self._services.datasets.get(caller, name)
        if dataset.num_broken and not arguments.drop_broken_rows:
            raise InvalidRequest(
                f'{dataset.num_broken:,} of {dataset.num_rows:,} rows cannot be used: tick "Leave broken rows out", or '
                "mend them (the Data tab shows which).",
                param="drop_broken_rows",
            )

    @event
    async def _demo(self, request: gr.Request, seen: Seen | None, model: str | None) -> Update:
        caller = visitor(request)
        job = await submit_demo(caller, self._services.datasets, self._services.training, model)
        return {**await self._look(caller, job.id, seen), **await self._choose(caller, job.spec.dataset_name, model)}

    # --- events: a job ---

    @event
    async def _open(self, request: gr.Request, chosen: gr.SelectData, seen: Seen | None) -> Update:
        return await self._look(visitor(request), str(chosen.value), seen)

    @event
    async def _cancel(self, request: gr.Request, here: Here, seen: Seen | None) -> Update:
        caller = visitor(request)
        await self._services.training.cancel(caller, _job(here))
        return await self._look(caller, here["job"], seen)

    @event
    async def _resume(self, request: gr.Request, here: Here, seen: Seen | None) -> Update:
        caller = visitor(request)
        await self._services.training.resume(caller, _job(here))
        return await self._look(caller, here["job"], seen)

    @stream
    async def _compare(self, request: gr.Request, here: Here) -> AsyncIterator[str]:
        caller = visitor(request)
        job = await self._services.training.get(caller, _job(here))
        yield '<p class="facts">Asking both models …</p>'
        answers: dict[str, BeforeAfter] = {}
        async for answer in self._services.before_after.compare(caller, job.id):
            answers[answer.question] = answer
            yield answers_html(list(answers.values()), job)

    @event
    async def _serve(self, request: gr.Request, here: Here) -> None:
        caller = admin_visitor(request)
        reference = _result(await self._services.training.get(caller, _job(here)))
        await self._services.models.set_default(reference)
        tell(f"From now on {reference} answers where no other model is chosen.")


def _chosen(dataset: str | None) -> str:
    if not dataset:
        raise InvalidRequest("Choose a dataset first; under Data you can add one.")
    return dataset


def _job(here: Here) -> str:
    if here.get("job") is None:
        raise InvalidRequest("Choose a training from the list first.")
    return str(here["job"])


def _result(job: Job) -> str:
    if job.adapter is None:
        raise InvalidRequest("This training has no result yet.")
    return job.adapter
