"""The Models tab: base models in memory, the versions of adapters, and what one can do with them."""

from collections.abc import AsyncIterator
from typing import Any, Final

import gradio as gr
from anyio.to_thread import run_sync

from mini_claude.data.records import AdapterVersion
from mini_claude.errors import Forbidden, InvalidRequest, NotFound
from mini_claude.services.identity import Caller
from mini_claude.services.services import Services
from mini_claude.web.page.adapter_import import AdapterImport
from mini_claude.web.page.adapter_list import AdapterList
from mini_claude.web.page.adapter_panel import EXPORTS, AdapterPanel
from mini_claude.web.page.downloads import keep_download
from mini_claude.web.page.errand_list import ErrandList
from mini_claude.web.page.errands import Errands, Outcome
from mini_claude.web.page.model_list import ModelList
from mini_claude.web.page.visitor import admin_visitor, event, stream, tell, visitor

LOOK_SECONDS: Final = 2.0
LABEL: Final = "Models"
_QUIET: Final[dict[str, Any]] = {"show_progress": "hidden", "api_visibility": "private"}

Update = dict[gr.blocks.Block, Any]


class ModelsTab:
    """Built inside of a tab; `start` afterwards wires when it is alive."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self.chosen = gr.State("")
        self.seen = gr.State(None)
        self.models = ModelList(services)
        gr.Markdown(
            "### Adapters\nWhat training added to a model. Every version stays, with how it was measured; "
            "choose one to see more."
        )
        self.adapters = AdapterList(services)
        self.panel = AdapterPanel(services)
        self.errands = ErrandList(Errands())
        self.importing = AdapterImport(services)
        self.timer = gr.Timer(LOOK_SECONDS, active=False)
        self._lists: list[gr.blocks.Block] = [
            *(self.seen, self.models.memory, self.models.list, self.adapters.list),
            *(self.errands.list, self.errands.files),
        ]
        self._all: list[gr.blocks.Block] = [*self._lists, self.chosen, *self.panel.outputs]
        self._wire()

    def start(self, page: gr.Blocks, tabs: gr.Tabs) -> None:
        """The lists are looked at every two seconds while this tab is the open one."""
        page.load(self._names, None, [self.importing.model, self.models.options], **_QUIET)
        tabs.select(self._opened, None, self.timer, **_QUIET)
        for look in (tabs.select, self.timer.tick):
            look(self._refresh, [self.chosen, self.seen], self._lists, **_QUIET)

    def _wire(self) -> None:
        look, panel = [self.chosen, self.seen], self.panel
        options = [self.models.dtype, self.models.quantization]
        self.models.list.select(
            self._load, [self.chosen, *options], self._lists, trigger_mode="multiple", concurrency_limit=None, **_QUIET
        )
        self.adapters.list.select(self._open, self.seen, self._all, **_QUIET)
        panel.verify.click(self._verify, look, self._all, **_QUIET)
        panel.export.click(self._export, [panel.format, *look], self._all, **_QUIET)
        panel.delete.click(lambda: gr.Button(visible=True), None, panel.confirm, **_QUIET)
        panel.confirm.click(self._delete, look, self._all, **_QUIET)
        self.errands.list.select(self._stop, look, self._all, **_QUIET)
        form = self.importing
        form.button.click(
            self._import,
            [form.files, form.name, form.model, self.seen],
            [*self._all, form.files, form.name],
            show_progress="minimal",
            api_visibility="private",
        )

    # --- showing ---

    async def _look(self, caller: Caller, chosen: str, seen: Any) -> Update:
        """The lists; one that is as it was in `seen` is left alone, so that the keyboard's focus stays where it is."""
        now: list[Any] = [
            await self.models.memory_html() if caller.is_admin else "",
            await self.models.items(caller),
            await self.adapters.items(caller, chosen),
            self.errands.items(caller),
            self.errands.paths(caller),
        ]
        changed = {
            place: value
            for place, value, before in zip(self._lists[1:], now, seen or [None] * len(now), strict=True)
            if value != before
        }
        if (files := self.errands.files) in changed:
            changed[files] = gr.File(changed[files], visible=bool(changed[files]))
        return {self.seen: now, **changed}

    async def _look_at(self, caller: Caller, version: AdapterVersion | None, seen: Any) -> Update:
        """The lists, and the panel of this version."""
        chosen = "" if version is None else version.reference
        return {
            **await self._look(caller, chosen, seen),
            self.chosen: chosen,
            **await self.panel.look(caller, version),
        }

    @event
    async def _opened(self, request: gr.Request, tab: gr.SelectData) -> gr.Timer:
        visitor(request)
        return gr.Timer(active=tab.value == LABEL)

    @event
    async def _names(self, request: gr.Request) -> tuple[gr.Dropdown, gr.Accordion]:
        """Which models an adapter can be for; and, for admins, how to load one."""
        caller = visitor(request)
        names = await self.models.names(caller)
        default = await self._services.models.default_name()
        return (
            gr.Dropdown(names, value=default if default in names else None),
            gr.Accordion(visible=caller.is_admin),
        )

    @event
    async def _refresh(self, request: gr.Request, chosen: str, seen: Any) -> Update:
        return await self._look(visitor(request), chosen, seen)

    # --- base models ---

    @stream
    async def _load(
        self, request: gr.Request, click: gr.SelectData, chosen: str, dtype: str, quantization: str
    ) -> AsyncIterator[Update]:
        """Load or unload; the state while that is under way comes with the timer."""
        caller, (verb, name) = admin_visitor(request), click.value
        try:
            if verb == "load":
                await self._services.models.load(name, {"dtype": dtype, "quantization": quantization or None})
            else:
                await self._services.models.unload(name)
        except Exception:
            yield await self._look(caller, chosen, None)
            raise
        yield await self._look(caller, chosen, None)

    # --- adapters ---

    @event
    async def _open(self, request: gr.Request, click: gr.SelectData, seen: Any) -> Update:
        caller = visitor(request)
        return await self._look_at(caller, await self._services.adapters.find(caller, str(click.value)), seen)

    async def _chosen(self, caller: Caller, reference: str) -> AdapterVersion:
        if not reference:
            raise InvalidRequest("Choose a version of an adapter first.")
        return await self._services.adapters.find(caller, reference)

    @event
    async def _verify(self, request: gr.Request, chosen: str, seen: Any) -> Update:
        caller = visitor(request)
        version = await self._chosen(caller, chosen)

        async def work() -> Outcome:
            done = await self._services.adapters.verify(caller, version.reference)
            assert done.certificate is not None
            return Outcome(("Passed. " if done.certificate["passed"] else "FAILED. ") + done.certificate["reason"])

        self.errands.errands.start(caller, f"Verification of {version.reference}", work())
        return await self._look_at(caller, version, seen)

    @event
    async def _export(self, request: gr.Request, choice: str, chosen: str, seen: Any) -> Update:
        caller = visitor(request)
        version = await self._chosen(caller, chosen)
        if choice not in EXPORTS:
            raise InvalidRequest("Choose what to export it as.")
        wanted, tensor_type = EXPORTS[choice]

        async def work() -> Outcome:
            export = await self._services.adapters.export(caller, version.reference, wanted, tensor_type)
            try:
                path = await run_sync(keep_download, self._services.settings, export.file_name, export.path)
            finally:
                await export.aclose()
            return Outcome("The file is below.", path)

        self.errands.errands.start(caller, f"{version.reference}: {choice}", work())
        return await self._look_at(caller, version, seen)

    @event
    async def _delete(self, request: gr.Request, chosen: str, seen: Any) -> Update:
        caller = visitor(request)
        version = await self._chosen(caller, chosen)
        await self._services.adapters.remove(caller, version.reference)
        return await self._look_at(caller, None, seen)

    @event
    async def _stop(self, request: gr.Request, click: gr.SelectData, chosen: str, seen: Any) -> Update:
        caller = visitor(request)
        self.errands.errands.stop(caller, str(click.value))
        try:
            version = await self._chosen(caller, chosen)
        except (InvalidRequest, NotFound, Forbidden):
            version = None
        return await self._look_at(caller, version, seen)

    @event
    async def _import(
        self, request: gr.Request, files: list[str] | None, name: str, model: str | None, seen: Any
    ) -> Update:
        caller = visitor(request)
        version = await self.importing.take(caller, files, name, model or "default")
        tell(f"Imported {version.reference}: verify it, then chat with it.")
        look = await self._look_at(caller, version, seen)
        return {**look, self.importing.files: None, self.importing.name: ""}
