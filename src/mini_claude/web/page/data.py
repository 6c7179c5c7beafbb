"""The Data tab: bring examples in, see what is in them, and what a model would learn from them."""

from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any, Final

import gradio as gr
from anyio.to_thread import run_sync

from mini_claude.data.records import Dataset
from mini_claude.errors import InvalidRequest, NotFound
from mini_claude.services.datasets import default_name
from mini_claude.services.feedback_datasets import FeedbackSource
from mini_claude.services.identity import Caller
from mini_claude.services.services import Services
from mini_claude.training.arguments import TrainingArguments
from mini_claude.training.dataset_formats import FORMATS
from mini_claude.training.doctor_report import Examination
from mini_claude.web.page.dataset_view import dataset_html, items_of
from mini_claude.web.page.pick_list import pick_list
from mini_claude.web.page.token_view import report_html
from mini_claude.web.page.visitor import event, tell, visitor
from mini_claude.web.schemas.training import TrainingFields

LABEL: Final = "Data"
MAX_ROWS_SHOWN: Final = 20
_FILE_TYPES: Final = [".jsonl", ".json", ".csv", ".parquet", ".txt"]
_CHUNK_BYTES: Final = 1 << 20
_QUIET: Final[dict[str, Any]] = {"show_progress": "hidden", "api_visibility": "private"}
_BUSY: Final[dict[str, Any]] = {"show_progress": "minimal", "api_visibility": "private"}
_NOTHING: Final = (
    '<p class="facts">Add a file with examples of questions and good answers, or choose a dataset of yours.</p>'
)
_SOURCES: Final = [
    ("Answers that you rated or corrected", "rated"),
    ("Pairs: the better of two answers", "preferences"),
]

Here = dict[str, Any]
Update = dict[gr.blocks.Block, Any]


class DataTab:
    """Built inside of a tab; `start` afterwards wires what happens when the page opens.

    `here` keeps in the browser which dataset is shown.
    """

    def __init__(self, services: Services, here: gr.BrowserState) -> None:
        self._services = services
        self.here = here
        with gr.Row():
            with gr.Column(scale=1, min_width=300):
                self._build_adding()
            with gr.Column(scale=2, min_width=320):
                self._build_showing()
        self._all: list[gr.blocks.Block] = [
            *(self.here, self.list, self.details, self.chosen, self.confirm, self.report, self.file, self.name)
        ]
        self._wire()

    def start(self, page: gr.Blocks, tabs: gr.Tabs) -> None:
        """The dataset from before, and what was added elsewhere meanwhile."""
        page.load(self._models, None, self.model, **_QUIET)
        page.load(self._refresh, self.here, self._all, **_QUIET)
        tabs.select(self._opened, self.here, self._all, **_QUIET)

    def _build_adding(self) -> None:
        self.file = gr.File(label="A file with examples", file_types=_FILE_TYPES, height=170, elem_id="dataset-file")
        self.name = gr.Textbox(
            label="Name", max_length=64, elem_id="dataset-name", info="Small letters, digits, dots, - and _."
        )
        self.add = gr.Button("Add this dataset", variant="primary", elem_id="dataset-add")
        with gr.Accordion("Which files can be used?", open=False):
            gr.HTML(_formats_html())
        gr.Markdown("### Your datasets")
        self.list = pick_list("Your datasets", "No dataset yet.", "datasets")
        with gr.Accordion("Make one out of your chats", open=False, elem_id="dataset-from-chats"):
            gr.Markdown("What you said of answers in the Chat and Compare tabs becomes examples to train on.")
            self.source = gr.Radio(_SOURCES, value="rated", label="Take", elem_id="feedback-source")
            self.feedback_name = gr.Textbox("my-feedback", label="Name", max_length=64, elem_id="feedback-name")
            self.make = gr.Button("Make the dataset", elem_id="feedback-make")

    def _build_showing(self) -> None:
        self.details = gr.HTML(_NOTHING, elem_id="dataset-details")
        with gr.Column(visible=False) as self.chosen:
            with gr.Row():
                self.train = gr.Button("Train on this", variant="primary", min_width=140, elem_id="dataset-train")
                self.delete = gr.Button("Delete", variant="stop", min_width=100, elem_id="dataset-delete")
                self.confirm = gr.Button(
                    "Delete it for good", variant="stop", visible=False, min_width=140, elem_id="dataset-confirm"
                )
            gr.Markdown("### What a model would learn")
            with gr.Row():
                self.model = gr.Dropdown(
                    [],
                    label="Model",
                    min_width=200,
                    elem_id="preview-model",
                    info="Each cuts text into its own tokens.",
                )
                self.num_rows = gr.Slider(
                    *(1, MAX_ROWS_SHOWN, 3), step=1, label="Rows to show", min_width=200, elem_id="preview-rows"
                )
                self.max_length = gr.Number(
                    TrainingArguments().max_length,
                    precision=0,
                    label="Longest example",
                    info="In tokens; the rest is cut.",
                    min_width=200,
                    elem_id="preview-length",
                )
            self.preview = gr.Button("Show what is learned", elem_id="dataset-preview")
            self.report = gr.HTML("", elem_id="dataset-report")

    def _wire(self) -> None:
        here = self.here
        self.file.upload(self._suggest, self.file, self.name, **_QUIET)
        self.add.click(self._add, [self.file, self.name], self._all, **_BUSY)
        self.list.select(self._open, None, self._all, **_QUIET)
        self.delete.click(lambda: gr.Button(visible=True), None, self.confirm, **_QUIET)
        self.confirm.click(self._delete, here, self._all, **_QUIET)
        self.preview.click(self._preview, [here, self.model, self.num_rows, self.max_length], self.report, **_BUSY)
        self.make.click(self._make, [self.source, self.feedback_name], self._all, **_BUSY)

    # --- showing ---

    async def _look(self, caller: Caller, name: str | None) -> Update:
        """The list, and a dataset of it. One that is gone is none."""
        datasets = await self._services.datasets.list(caller)
        dataset = next((each for each in datasets if each.name == name), None)
        return {
            self.here: {"dataset": None if dataset is None else dataset.name},
            self.list: items_of(datasets, name),
            self.details: _NOTHING if dataset is None else dataset_html(dataset),
            self.chosen: gr.Column(visible=dataset is not None),
            self.confirm: gr.Button(visible=False),
        }

    async def _models(self, request: gr.Request) -> gr.Dropdown:
        names = [info.name for info in await self._services.models.list(visitor(request)) if ":" not in info.name]
        default = (await self._services.models.resolve(None)).name
        return gr.Dropdown(names, value=default if default in names else next(iter(names), None))

    # --- events ---

    @event
    async def _refresh(self, request: gr.Request, here: Here) -> Update:
        return await self._look(visitor(request), here.get("dataset"))

    @event
    async def _opened(self, request: gr.Request, tab: gr.SelectData, here: Here) -> Update:
        """The list may have grown elsewhere; `here` is not written, since the browser may not have been asked yet."""
        if tab.value != LABEL:
            return {self.confirm: gr.skip()}
        datasets = await self._services.datasets.list(visitor(request))
        return {self.list: items_of(datasets, here.get("dataset"))}

    @event
    async def _suggest(self, path: str | None) -> str:
        return default_name(Path(path).name) if path else ""

    @event
    async def _add(self, request: gr.Request, path: str | None, name: str) -> Update:
        caller = visitor(request)
        if not path:
            raise InvalidRequest("Choose a file first, and wait until it has arrived.")
        dataset, is_new = await self._take_in(caller, Path(path), name.strip() or None)
        tell(f"Added {dataset.name}." if is_new else f"{dataset.name} was here already, with the same content.")
        return {**await self._look(caller, dataset.name), self.report: "", self.file: None, self.name: ""}

    async def _take_in(self, caller: Caller, path: Path, name: str | None) -> tuple[Dataset, bool]:
        async with self._services.datasets.receive((await run_sync(path.stat)).st_size) as incoming:
            await run_sync(_copy, path, incoming.write)
            return await self._services.datasets.add(caller, incoming, path.name, name)

    @event
    async def _open(self, request: gr.Request, chosen: gr.SelectData) -> Update:
        return {**await self._look(visitor(request), str(chosen.value)), self.report: ""}

    @event
    async def _delete(self, request: gr.Request, here: Here) -> Update:
        caller = visitor(request)
        await self._services.datasets.delete(caller, dataset_of(here))
        return {**await self._look(caller, None), self.report: ""}

    @event
    async def _preview(
        self, request: gr.Request, here: Here, model: str | None, num_rows: int, max_length: int | None
    ) -> str:
        arguments = TrainingFields.model_validate({"max_length": max_length}).arguments()
        wanted = Examination(int(num_rows), arguments=arguments)
        return report_html(await self._services.datasets.preview(visitor(request), dataset_of(here), model, wanted))

    @event
    async def _make(self, request: gr.Request, source: FeedbackSource, name: str) -> Update:
        caller = visitor(request)
        made = await self._services.feedback_datasets.make(caller, name, source)
        tell(f"Made {made.dataset.name}: {made.dataset.num_rows:,} rows.")
        if made.num_left_out:
            tell(f"{made.num_left_out} answers were left out: they had been stopped or cut before their end.")
        return {**await self._look(caller, name), self.report: ""}


def dataset_of(here: Here) -> str:
    """The chosen dataset's name. Raises `NotFound` where none is chosen."""
    if here.get("dataset") is None:
        raise NotFound("Choose a dataset first.")
    return str(here["dataset"])


def _copy(path: Path, write: Callable[[bytes], None]) -> None:
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            write(chunk)


def _formats_html() -> str:
    rows = "".join(f"<li><b>{escape(name)}</b><br><code>{escape(shape)}</code></li>" for name, shape in FORMATS.items())
    told = "JSONL, JSON, CSV, Parquet or text. The form of the rows is found by itself; these are known:"
    return f"<p>{told}</p><ul class='formats'>{rows}</ul>"
