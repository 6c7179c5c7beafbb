"""The files that a browser may name: those that it has uploaded, and no others.

Gradio has such a check, which it leaves out where a page is mounted into an application, as this one is. Without it
every event would copy any file that this process can read, or any URL, to where its visitor can fetch it.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.block_function import BlockFunction
from gradio.state_holder import SessionState
from gradio.utils import get_upload_folder

REFUSED = "Choose a file of your own, and wait until it has arrived."


class UploadsOnly(gr.Blocks):
    """A page whose events are given no file but uploaded ones, whatever a browser says."""

    async def preprocess_data(
        self, block_fn: BlockFunction, inputs: list[Any], state: SessionState | None, explicit_call: bool = False
    ) -> Any:
        """Look at what an event is given before Gradio does. Raises `gr.Error`."""
        if not all(_is_uploaded(path) for path in _named_in(inputs)):
            raise gr.Error(REFUSED)
        return await super().preprocess_data(block_fn, inputs, state, explicit_call)


def _named_in(value: object) -> Iterator[object]:
    """Every path of a file in what a browser sent: Gradio takes each object with a "path" for one."""
    if isinstance(value, dict):
        if "path" in value:
            yield value["path"]
        value = list(value.values())
    if isinstance(value, list):
        for each in value:
            yield from _named_in(each)


def _is_uploaded(path: object) -> bool:
    try:
        return isinstance(path, str) and Path(path).resolve().is_relative_to(Path(get_upload_folder()).resolve())
    except (OSError, ValueError):  # no path at all
        return False
