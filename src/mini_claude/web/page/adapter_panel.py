"""One version of an adapter: what made it, how it was proven, and what can be done with it."""

from collections.abc import Mapping
from html import escape
from typing import Any, Final

import gradio as gr

from mini_claude.data.records import AdapterVersion
from mini_claude.runtime.adapter_requests import ExportFormat
from mini_claude.services.identity import Caller
from mini_claude.services.services import Services
from mini_claude.types import GGUFType
from mini_claude.web.page.adapter_list import loss_of
from mini_claude.web.page.proof import certificate_table, proof_of

EXPORTS: Final[dict[str, tuple[ExportFormat, GGUFType]]] = {
    "The adapter alone, for PEFT (.zip)": ("peft", "f16"),
    "A whole model, for transformers (.zip)": ("merged", "f16"),
    "The adapter alone, for llama.cpp (.gguf)": ("gguf", "f16"),
    "A whole model, for llama.cpp in 16 bits (.gguf)": ("gguf-merged", "f16"),
    "A whole model, for llama.cpp in 8 bits (.gguf)": ("gguf-merged", "q8_0"),
}
Update = dict[gr.blocks.Block, Any]


class AdapterPanel:
    """The components; what happens on their events is the tab's affair."""

    def __init__(self, services: Services) -> None:
        self._services = services
        with gr.Column(visible=False, elem_id="adapter-panel") as self.box:
            self.details = gr.HTML("", padding=True, elem_id="adapter-details")
            with gr.Column(visible=False) as self.actions:
                with gr.Row():
                    self.verify = gr.Button("Verify", min_width=120, elem_id="adapter-verify")
                    self.delete = gr.Button("Delete", variant="stop", min_width=120, elem_id="adapter-delete")
                    self.confirm = gr.Button(
                        "Delete it for good", variant="stop", visible=False, min_width=120, elem_id="adapter-confirm"
                    )
                with gr.Row(equal_height=True):
                    self.format = gr.Dropdown(
                        list(EXPORTS), value=next(iter(EXPORTS)), label="Export as", elem_id="export-format"
                    )
                    self.export = gr.Button("Export", min_width=120, elem_id="adapter-export")
        self.outputs: list[gr.blocks.Block] = [self.box, self.details, self.actions, self.confirm]

    async def look(self, caller: Caller, version: AdapterVersion | None) -> Update:
        """Everything about the version; None hides the panel. Only its owner sees what changes it."""
        if version is None:
            return {self.box: gr.Column(visible=False)}
        mine = version.owner == caller.owner
        proof = await proof_of(self._services, caller, version.reference)
        return {
            self.box: gr.Column(visible=True),
            self.details: details_html(version, proof, mine=mine),
            self.actions: gr.Column(visible=mine),
            self.confirm: gr.Button(visible=False),
        }


def details_html(version: AdapterVersion, proof: str, *, mine: bool) -> str:
    """`proof` is HTML already."""
    parts = [proof]
    if not mine:
        parts.append("<p class='facts'>It is somebody else's: you can chat with it, and not change it.</p>")
    if loss := loss_of(version):
        parts.append(
            f"<p>{escape(loss)} <small>(lower is better; measured on rows that training did not see)</small></p>"
        )
    if version.certificate is not None and version.certificate.get("steps"):
        parts.append(f'<div class="scroll">{certificate_table(version.certificate)}</div>')
    for title, name in (("Metrics", "metrics"), ("Training settings", "arguments"), ("Made with", "environment")):
        if values := version.facts.get(name):
            parts.append(f"<details><summary>{title}</summary>{_table(values)}</details>")
    if sha256 := version.facts.get("dataset_sha256"):
        parts.append(f"<p class='facts'>data: sha256 {escape(str(sha256))}</p>")
    return "".join(parts)


def _table(values: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<tr><td>{escape(name)}</td><td>{escape(_plain(value))}</td></tr>"
        for name, value in sorted(values.items())
        if value is not None
    )
    return f'<div class="scroll"><table class="plain"><tbody>{rows}</tbody></table></div>'


def _plain(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
