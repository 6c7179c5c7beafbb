"""The base models: what they are, which are in memory, and for admins buttons to load and unload them."""

from collections.abc import Sequence
from typing import Any, Final

import gradio as gr
import psutil

from mini_claude.runtime.messages import RuntimeStatus
from mini_claude.services.identity import Caller
from mini_claude.services.services import Services
from mini_claude.types import ModelInfo, ModelState

_TEMPLATE: Final = """
<div class="cards">
{{#each value}}<article class="spread"><div>
<p><strong>{{name}}</strong> <span class="badge {{tone}}">{{state}}</span></p>
<p>{{description}}</p>
{{#if facts}}<p>{{facts}}</p>{{/if}}
{{#if error}}<p class="wrong">{{error}}</p>{{/if}}
</div><p>{{#each actions}}<button type="button" data-verb="{{verb}}" data-name="{{name}}" {{off}}>{{label}}</button>
{{/each}}</p>
</article>{{/each}}
</div>"""
_CLICK: Final = """
element.addEventListener('click', event => {
  const button = event.target.closest('button[data-verb]');
  if (button) trigger('select', {index: 0, value: [button.dataset.verb, button.dataset.name]});
});"""
_STATES: Final[dict[ModelState, tuple[str, str]]] = {
    "available": ("not loaded", ""),
    "loading": ("loading …", ""),
    "ready": ("ready", "good"),
    "unloading": ("unloading …", ""),
    "failed": ("failed", "bad"),
}
_DTYPES: Final = [
    ("Automatic: what is fastest here", "auto"),
    ("32 bits: exact, 4 bytes a weight", "float32"),
    ("16 bits, bfloat16: half the memory", "bfloat16"),
    ("16 bits, float16: half the memory, for older GPUs", "float16"),
]
_QUANTIZATIONS: Final = [
    ("None", ""),
    ("8 bits: a quarter of the memory, hardly worse", "int8"),
    ("4 bits: an eighth of the memory, somewhat worse", "nf4"),
]
_MEMORY_INFO: Final = (
    "A model with 135 million weights needs about 540 MB in 32 bits, 270 MB in 16, 135 MB in 8 and 70 MB in 4, "
    "and some more for what it remembers of conversations."
)


class ModelList:
    """The components; what happens on their events is the tab's affair."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self.memory = gr.HTML("", elem_id="models-memory")
        self.list = gr.HTML([], html_template=_TEMPLATE, js_on_load=_CLICK, elem_id="models")
        with gr.Accordion("How to load", open=False, elem_id="load-options") as self.options:
            gr.Markdown("Used by the next click on Load. " + _MEMORY_INFO)
            self.dtype = gr.Dropdown(_DTYPES, value="auto", label="Precision of the numbers", elem_id="load-dtype")
            self.quantization = gr.Dropdown(
                _QUANTIZATIONS,
                value="",
                label="Rounding of the weights (quantization)",
                elem_id="load-quantization",
                info="Saves memory. Best with a GPU; on a processor it is slow.",
            )

    async def names(self, caller: Caller) -> list[str]:
        """Of all base models that the caller may use."""
        return [info.name for info in await self._bases(caller)]

    async def items(self, caller: Caller) -> list[dict[str, Any]]:
        """The value of `list`."""
        absent = await self._services.models.not_downloaded()
        manages = caller.is_admin
        return [item_of(info, manages=manages, absent=info.name in absent) for info in await self._bases(caller)]

    async def memory_html(self) -> str:
        """The value of `memory`."""
        memory = psutil.virtual_memory()
        return memory_html(await self._services.runtime.status(), memory.available, memory.total)

    async def _bases(self, caller: Caller) -> Sequence[ModelInfo]:
        return [info for info in await self._services.models.list(caller) if ":" not in info.name]


def item_of(info: ModelInfo, *, manages: bool, absent: bool = False) -> dict[str, Any]:
    """A card; with buttons for whoever `manages` the server. While a model comes or goes they are off.

    `absent`: its files are not on this machine, and the card says how they come here.
    """
    if absent:
        return {
            "name": info.name,
            "description": info.description,
            "state": "not on this machine",
            "tone": "",
            "facts": f"{info.license}. To download it, in a terminal: mini-claude models pull {info.name}",
            "error": "",
            "actions": [],
        }
    state, tone = _STATES[info.state]
    off = "disabled" if info.state in ("loading", "unloading") else ""
    load = {"verb": "load", "name": info.name, "label": "Load again" if info.state == "ready" else "Load", "off": off}
    unload = {"verb": "unload", "name": info.name, "label": "Unload", "off": off}
    actions = [load, unload] if info.state == "ready" else [load]
    precision = info.quantization or info.dtype
    facts = [
        info.license,
        info.engine and f"computed by {info.engine}",
        precision and f"numbers: {precision}",
        info.device and f"on {info.device}",
        info.context_length and f"remembers {info.context_length:,} tokens",
        info.memory_bytes and f"{info.memory_bytes / 1e6:,.0f} MB",
        info.restarts and f"started anew {info.restarts} times after a crash",
    ]
    return {
        "name": info.name,
        "description": info.description,
        "state": state,
        "tone": tone,
        "facts": " · ".join(str(fact) for fact in facts if fact),
        "error": info.error or "",
        "actions": actions if manages else [],
    }


def memory_html(status: RuntimeStatus, available: int, total: int) -> str:
    """How much memory models take and how much is left, in the machine and in each GPU."""
    engines = [process.rss_bytes for process in status.processes if process.role.startswith("engine:")]
    parts = [
        f"models hold {sum(engines) / 1e9:,.1f} GB",
        f"{available / 1e9:,.1f} of {total / 1e9:,.1f} GB of the machine's memory are free",
        *(f"GPU {gpu.index}: {(gpu.total_bytes - gpu.used_bytes) / 1e9:,.1f} GB free" for gpu in status.gpus),
    ]
    return f"<p class='facts'>Memory: {', '.join(parts)}.</p>"
