"""A list of buttons of which one is the current one: by mouse, finger and keyboard."""

from typing import Final

import gradio as gr

_TEMPLATE: Final = """
<nav class="pick-list" aria-label="%s">
{{#each value}}<button type="button" data-id="{{id}}" aria-current="{{current}}"><b>{{title}}</b><small>{{note}}</small>
</button>{{else}}<p>%s</p>{{/each}}
</nav>"""
_ON_LOAD: Final = """
element.addEventListener('click', event => {
  const button = event.target.closest('button[data-id]');
  if (button) trigger('select', {index: 0, value: button.dataset.id});
});"""


def pick_list(label: str, empty: str, elem_id: str) -> gr.HTML:
    """Its value is a list of {"id", "title", "note", "current": "true" or "false"}; its `select` gives the id.

    `label` and `empty` are texts of ours, without anything that HTML or the template would read.
    """
    return gr.HTML([], html_template=_TEMPLATE % (label, empty), js_on_load=_ON_LOAD, elem_id=elem_id)
