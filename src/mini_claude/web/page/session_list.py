"""The sidebar: the visitor's conversations, to search, open, rename and delete."""

from collections.abc import Sequence
from typing import Any, Final

import gradio as gr

from mini_claude.data.records import ChatSession
from mini_claude.services.identity import Caller
from mini_claude.services.services import Services

MAX_SHOWN: Final = 100
_TEMPLATE: Final = """
<nav class="session-list" aria-label="Conversations">
{{#each value}}<button type="button" data-id="{{id}}" aria-current="{{current}}" title="{{title}}">{{title}}</button>
{{else}}<p>No conversation here.</p>{{/each}}
</nav>"""
_ON_LOAD: Final = """
element.addEventListener('click', event => {
  const button = event.target.closest('button[data-id]');
  if (button) trigger('select', {index: 0, value: button.dataset.id});
});"""


class SessionList:
    """The components; what happens on their events is the chat's affair."""

    def __init__(self, services: Services) -> None:
        self._services = services
        with gr.Sidebar(width=280, elem_id="sidebar"):
            self.new = gr.Button("New chat", variant="primary", elem_id="new-chat")
            self.query = gr.Textbox(
                placeholder="Search titles and texts",
                label="Search in conversations",
                show_label=False,
                container=False,
                elem_id="session-search",
            )
            self.list = gr.HTML([], html_template=_TEMPLATE, js_on_load=_ON_LOAD, elem_id="sessions")
            with gr.Accordion("This conversation", open=False, elem_id="session-tools"):
                self.title = gr.Textbox(label="Title", max_length=60, elem_id="session-title")
                self.rename = gr.Button("Rename", size="sm", interactive=False)
                self.delete = gr.Button("Delete", size="sm", variant="stop", interactive=False)
                self.confirm = gr.Button("Delete it for good", size="sm", variant="stop", visible=False)
                with gr.Row():
                    self.export_markdown = gr.Button("Export Markdown", size="sm", interactive=False)
                    self.export_json = gr.Button("Export JSON", size="sm", interactive=False)
                self.file = gr.DownloadButton("Download", visible="hidden", elem_id="session-file")

    @property
    def tools(self) -> tuple[gr.Button, ...]:
        """What can be done to the conversation that is open."""
        return self.rename, self.delete, self.export_markdown, self.export_json

    async def items(self, caller: Caller, current: str | None, query: str) -> list[dict[str, Any]]:
        """The value of `list`: most recently used first, those that contain the query's text."""
        return _items(await self._services.chat.list(caller, MAX_SHOWN, text=query.strip() or None), current)


def _items(sessions: Sequence[ChatSession], current: str | None) -> list[dict[str, Any]]:
    return [
        {"id": each.id, "title": each.title, "current": "true" if each.id == current else "false"} for each in sessions
    ]
