"""Which model answers and how it chooses its words, explained in plain language."""

from dataclasses import dataclass
from typing import Any

import gradio as gr

from mini_claude.types import SamplingParams
from mini_claude.web.page.sampling_sliders import SamplingSliders


@dataclass(frozen=True, slots=True)
class Choice:
    """What the panel says when a message is sent."""

    model: str | None
    system: str
    params: SamplingParams


class SamplingPanel:
    """The components; `inputs` are their order in an event's arguments."""

    def __init__(self) -> None:
        with gr.Accordion("Model and settings", open=False, elem_id="settings"):
            self.model = gr.Dropdown([], label="Model or adapter", elem_id="model", info="What answers from now on.")
            self.system = gr.Textbox(
                label="System prompt",
                lines=2,
                max_length=20_000,
                elem_id="system",
                info="Told to the model before everything else, for example how to answer. It stays with the chat.",
            )
            sliders = SamplingSliders()
        self.inputs: list[gr.components.Component] = [*(self.model, self.system, *sliders.inputs)]

    @staticmethod
    def choice(values: tuple[Any, ...]) -> Choice:
        """From the components' values. Raises pydantic's `ValidationError` with the bounds of the API."""
        model, system, *sliders = values
        return Choice(model or None, system or "", SamplingSliders.params(sliders))
