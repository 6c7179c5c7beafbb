"""The form for an adapter that was trained elsewhere."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import gradio as gr
from anyio.to_thread import run_sync

from mini_claude.data.records import AdapterVersion
from mini_claude.errors import InvalidRequest
from mini_claude.services.identity import Caller
from mini_claude.services.services import Services

_CHUNK_BYTES: Final = 1 << 20
_SUFFIXES: Final = {"config": ".json", "weights": ".safetensors"}


class AdapterImport:
    """The components; what happens on a click is the tab's affair."""

    def __init__(self, services: Services) -> None:
        self._services = services
        with gr.Accordion("Import an adapter", open=False, elem_id="adapter-import"):
            gr.Markdown(
                "A LoRA adapter that PEFT saved: the two files adapter_config.json and adapter_model.safetensors. "
                "It is checked, and nothing in it is ever run."
            )
            self.files = gr.File(
                label="Both files", file_count="multiple", file_types=[".json", ".safetensors"], elem_id="import-files"
            )
            with gr.Row():
                self.model = gr.Dropdown([], label="Model it was trained for", elem_id="import-model")
                self.name = gr.Textbox(
                    label="Name",
                    max_length=64,
                    elem_id="import-name",
                    info="Lower-case letters, digits, '.', '_' and '-'. A name of yours gets another version.",
                )
            self.button = gr.Button("Import", variant="primary", elem_id="import-button")

    async def take(self, caller: Caller, files: Sequence[str] | None, name: str, model: str) -> AdapterVersion:
        """Check and keep what was uploaded. Raises `InvalidRequest` and what `AdapterService.add` raises."""
        paths = parts_of(files or ())
        num_bytes = sum(path.stat().st_size for path in paths.values())
        async with self._services.adapters.receive(num_bytes) as incoming:
            for part, path in paths.items():
                await run_sync(_copy, path, part, incoming.write)
            version = await self._services.adapters.add(caller, incoming, name.strip(), model)
        for path in paths.values():
            path.unlink(missing_ok=True)
        return version


def parts_of(files: Sequence[str]) -> dict[str, Path]:
    """Which of the two files is which. Raises `InvalidRequest`."""
    parts = {part: [Path(file) for file in files if file.endswith(end)] for part, end in _SUFFIXES.items()}
    if len(files) != 2 or any(len(found) != 1 for found in parts.values()):
        raise InvalidRequest("Choose exactly two files: adapter_config.json and adapter_model.safetensors.")
    return {part: found[0] for part, found in parts.items()}


def _copy(path: Path, part: str, write: Callable[[str, bytes], None]) -> None:
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            write(part, chunk)
