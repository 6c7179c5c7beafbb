"""The System tab: whether the server can answer, and for admins how it and the machine are, live while they look."""

import shutil
import time
from importlib.metadata import version
from typing import Any, Final

import gradio as gr
from anyio.to_thread import run_sync

from mini_claude.errors import MiniClaudeError
from mini_claude.services.health import check_health
from mini_claude.services.recent_errors import recent_errors
from mini_claude.services.services import Services
from mini_claude.web.page.system_history import SAMPLE_SECONDS, SystemHistory
from mini_claude.web.page.system_report import errors_html, figures_of, health_html, plots_html, totals_of
from mini_claude.web.page.visitor import event, visitor

MAX_ERRORS: Final = 20
LABEL: Final = "System"
_FOR_ADMINS: Final = "<p class='facts'>Figures and errors of the whole server are shown to admins' keys.</p>"
_SIGN_OUT: Final = '<form method="post" action="/logout"><button class="sm secondary">Sign out</button></form>'
_QUIET: Final[dict[str, Any]] = {"show_progress": "hidden", "api_visibility": "private"}


class SystemTab:
    """Built inside of a tab; `start` afterwards wires when it is alive."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._history = SystemHistory(services.runtime)
        self.health = gr.HTML("", elem_id="system-health")
        self.plots = gr.HTML("", elem_id="system-plots")
        gr.Markdown("### Recent errors and warnings\nWhat is wrong, as codes; what anybody wrote is in no log.")
        self.errors = gr.HTML("", elem_id="system-errors")
        self.sign_out = gr.HTML(_SIGN_OUT, visible=False, elem_id="sign-out")
        self.timer = gr.Timer(SAMPLE_SECONDS, active=False)

    def start(self, page: gr.Blocks, tabs: gr.Tabs) -> None:
        """The history begins with the first visitor; the tab is drawn anew only while it is the open one."""
        shown = [self.health, self.plots, self.errors]
        page.load(self._begin, None, self.sign_out, **_QUIET)
        tabs.select(self._opened, None, self.timer, **_QUIET)
        tabs.select(self._look, None, shown, **_QUIET)
        self.timer.tick(self._look, None, shown, **_QUIET)

    @event
    async def _begin(self, request: gr.Request) -> gr.HTML:
        """Only who signed in can sign out."""
        caller = visitor(request)
        await self._history.start()
        return gr.HTML(visible=not caller.is_local)

    @event
    async def _opened(self, request: gr.Request, chosen: gr.SelectData) -> gr.Timer:
        visitor(request)
        return gr.Timer(active=chosen.value == LABEL)

    @event
    async def _look(self, request: gr.Request) -> tuple[str, str, str]:
        """A user is told what /api/v1/health tells, an admin everything."""
        caller = visitor(request)
        health = await check_health(self._services)
        if not caller.is_admin:
            return health_html(health, version("mini-claude")), _FOR_ADMINS, ""
        try:
            totals = totals_of(await self._services.runtime.metrics())
        except MiniClaudeError:  # which `health` tells
            totals = totals_of("")
        free = await run_sync(_free_bytes, self._services)
        errors = await run_sync(recent_errors, self._services.settings.logs_dir, MAX_ERRORS)
        return (
            health_html(health, version("mini-claude"), figures_of(free, totals)),
            plots_html(self._history.samples, time.time()),
            errors_html(errors),
        )


def _free_bytes(services: Services) -> int:
    return shutil.disk_usage(services.settings.data_dir).free
