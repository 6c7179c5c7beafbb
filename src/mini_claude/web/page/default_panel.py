"""Which model answers where nobody chose one: what it is, what it was, and the way back."""

from typing import Any, Final

import gradio as gr

from mini_claude.errors import InvalidRequest
from mini_claude.services.services import Services
from mini_claude.web.page.visitor import admin_visitor, event, tell, visitor

MAX_HISTORY: Final = 20
_QUIET: Final[dict[str, Any]] = {"show_progress": "hidden", "api_visibility": "private"}


class DefaultPanel:
    """Built below the models; looked at anew whenever `tab` opens. Everybody sees it, admins change it."""

    def __init__(self, services: Services, tab: gr.Tab) -> None:
        self._services = services
        gr.Markdown("### The default\nWhat answers new chats, and programs that name no model.")
        with gr.Row(equal_height=True):
            self.model = gr.Dropdown([], label="Default model or adapter", elem_id="default-model")
            self.choose = gr.Button("Make it the default", elem_id="make-default", interactive=False)
            self.back = gr.Button("Back to the one before", interactive=False, elem_id="roll-back")
        outputs = [self.model, self.choose, self.back]
        tab.select(self._look, None, outputs, **_QUIET)
        self.choose.click(self._choose, self.model, outputs, **_QUIET)
        self.back.click(self._roll_back, None, outputs, **_QUIET)

    @event
    async def _look(self, request: gr.Request) -> tuple[gr.Dropdown, gr.Button, gr.Button]:
        caller = visitor(request)
        allowed = caller.is_admin
        names = [info.name for info in await self._services.models.list(caller)]
        current, before = await self._services.models.default_name(), await self._before()
        label = "Back to the one before" if before is None else f"Back to {before}"
        return (
            gr.Dropdown(names if current in names else [*names, current], value=current, interactive=allowed),
            gr.Button(interactive=allowed),
            gr.Button(label, interactive=allowed and before is not None),
        )

    @event
    async def _choose(self, request: gr.Request, reference: str | None) -> tuple[gr.Dropdown, gr.Button, gr.Button]:
        admin_visitor(request)
        if not reference:
            raise InvalidRequest("Choose a model first.")
        name = await self._services.models.set_default(reference)
        tell(f"From now on {name} answers where no other model is chosen.")
        return await self._look(request)

    @event
    async def _roll_back(self, request: gr.Request) -> tuple[gr.Dropdown, gr.Button, gr.Button]:
        admin_visitor(request)
        before = await self._before()
        if before is None:
            raise InvalidRequest("There is no other default from before.")
        return await self._choose(request, before)

    async def _before(self) -> str | None:
        """The last default that was another one; the setting's, where only one was ever chosen."""
        history = [each.reference for each in await self._services.models.default_history(MAX_HISTORY)]
        if not history:
            return None
        others = [reference for reference in history if reference != history[0]]
        fallback = self._services.settings.default_model
        return others[0] if others else (fallback if fallback != history[0] else None)
