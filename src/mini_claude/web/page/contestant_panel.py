"""One of the two that are compared: which model or adapter, and its settings."""

from collections.abc import Sequence
from typing import Any, Literal

import gradio as gr

from mini_claude.web.page.race import Contestant
from mini_claude.web.page.sampling_sliders import SamplingSliders


class ContestantPanel:
    """The components; `inputs` are their order in an event's arguments."""

    def __init__(self, which: Literal["first", "second"]) -> None:
        with gr.Column(min_width=280):
            self.model = gr.Dropdown(
                [], label=f"{which.capitalize()} model or adapter", elem_id=f"{which}-model", filterable=True
            )
            with gr.Accordion("Its settings", open=False, elem_id=f"{which}-settings"):
                sliders = SamplingSliders()
        self.inputs: list[gr.components.Component] = [self.model, *sliders.inputs]

    @staticmethod
    def contestant(values: Sequence[Any]) -> Contestant:
        """What `inputs` say. Raises pydantic's `ValidationError` with the bounds of the API."""
        model, *sliders = values
        return Contestant(str(model or "default"), SamplingSliders.params(sliders))
