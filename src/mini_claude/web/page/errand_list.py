"""A visitor's exports and verifications: what runs, what became of it, and the files to download."""

import time
from collections.abc import Sequence
from typing import Any, Final

import gradio as gr

from mini_claude.services.identity import Caller
from mini_claude.web.page.errands import Errand, Errands

STEP_SECONDS: Final = 10  # of the time shown: each change draws the list anew
_TEMPLATE: Final = """
<div class="cards">
{{#each value}}<article>
<p><strong>{{label}}</strong> <span class="badge {{tone}}">{{state}}</span>
<button type="button" data-value="{{id}}">{{action}}</button></p>
{{#if words}}<p>{{words}}</p>{{/if}}
</article>{{/each}}
</div>"""
CLICK: Final = """
element.addEventListener('click', event => {
  const button = event.target.closest('button[data-value]');
  if (button) trigger('select', {index: 0, value: button.dataset.value});
});"""


class ErrandList:
    """The components; what happens on a click is the tab's affair."""

    def __init__(self, errands: Errands) -> None:
        self.errands = errands
        self.list = gr.HTML([], html_template=_TEMPLATE, js_on_load=CLICK, elem_id="errands")
        self.files = gr.File(
            label="Finished exports (kept for a day)",
            file_count="multiple",
            interactive=False,
            visible=False,
            elem_id="export-files",
        )

    def items(self, caller: Caller) -> list[dict[str, Any]]:
        """The value of `list`."""
        return items_of(self.errands.of(caller), time.time())

    def paths(self, caller: Caller) -> list[str]:
        """The value of `files`."""
        return files_of(self.errands.of(caller))


def items_of(errands: Sequence[Errand], now: float) -> list[dict[str, Any]]:
    """The value of the list."""
    return [
        {
            "id": errand.id,
            "label": errand.label,
            "state": _state(errand, now),
            "tone": "bad" if errand.error else ("good" if errand.outcome else ""),
            "words": errand.error or (errand.outcome.sentence if errand.outcome else ""),
            "action": "Stop" if errand.ended is None else "Remove",
        }
        for errand in errands
    ]


def files_of(errands: Sequence[Errand]) -> list[str]:
    """Paths of what can be downloaded."""
    outcomes = [errand.outcome for errand in errands if errand.outcome is not None]
    return [str(outcome.file) for outcome in outcomes if outcome.file is not None]


def _state(errand: Errand, now: float) -> str:
    if errand.ended is None:
        return f"running for {(now - errand.started) // STEP_SECONDS * STEP_SECONDS:.0f} s"
    return "failed" if errand.error else f"done in {errand.ended - errand.started:.0f} s"
