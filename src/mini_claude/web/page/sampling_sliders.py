"""How a model chooses its words, as sliders that say in plain language what they do."""

from collections.abc import Sequence
from typing import Any, Final

import gradio as gr

from mini_claude.errors import InvalidRequest
from mini_claude.types import SamplingParams
from mini_claude.web.schemas.sampling import SamplingFields

DEFAULT_MAX_TOKENS: Final = 512


class SamplingSliders:
    """The components; `inputs` are their order in an event's arguments."""

    def __init__(self) -> None:
        with gr.Row():
            temperature = gr.Slider(
                0,
                2,
                0.2,
                step=0.05,
                label="Temperature",
                info="0: always the likeliest word. Higher: more variety.",
            )
            max_tokens = gr.Slider(
                1,
                4096,
                DEFAULT_MAX_TOKENS,
                step=1,
                label="Longest answer",
                info="In tokens, about ¾ of a word each.",
            )
        with gr.Row():
            top_p = gr.Slider(
                0, 1, 1, step=0.01, label="Top p", info="Only the likeliest words that together reach this share."
            )
            top_k = gr.Slider(0, 200, 0, step=1, label="Top k", info="Only so many of the likeliest words; 0: all.")
            min_p = gr.Slider(
                0, 1, 0, step=0.01, label="Min p", info="Only words at least this fraction as likely as the first."
            )
        with gr.Row():
            repetition = gr.Slider(
                0.5, 2, 1, step=0.01, label="Repetition penalty", info="Above 1 the model repeats itself less."
            )
            # Not a gr.Number: an empty one sends 0 once it has been on the screen.
            seed = gr.Textbox(
                "",
                label="Seed",
                max_length=20,
                info="The same number gives the same answer again. Empty: chance.",
            )
        self.inputs: list[gr.components.Component] = [*(temperature, max_tokens, top_p, top_k, min_p, repetition, seed)]

    @staticmethod
    def params(values: Sequence[Any]) -> SamplingParams:
        """From the components' values. Raises pydantic's `ValidationError` with the bounds of the API."""
        temperature, max_tokens, top_p, top_k, min_p, repetition, seed = values
        fields = SamplingFields(
            temperature=float(temperature),
            max_tokens=int(max_tokens),
            top_p=float(top_p),
            top_k=int(top_k),
            min_p=float(min_p),
            repetition_penalty=float(repetition),
            seed=_seed(seed),
        )
        return fields.sampling_params()


def _seed(text: str | None) -> int | None:
    """The number in the field; None where it is empty."""
    text = (text or "").strip()
    if not text:
        return None
    try:
        return int(text)
    except ValueError as error:
        raise InvalidRequest("The seed is a whole number; leave it empty for chance.", param="seed") from error
