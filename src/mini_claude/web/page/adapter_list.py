"""The adapters with all their versions, to choose one from."""

from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import groupby
from typing import Any, Final

import gradio as gr

from mini_claude.data.records import AdapterVersion
from mini_claude.services.identity import Caller
from mini_claude.services.services import Services
from mini_claude.web.page.errand_list import CLICK

_TEMPLATE: Final = """
<div class="cards">
{{#each value}}<article>
<p><strong>{{name}}</strong> {{whose}}</p>
<div class="versions">{{#each versions}}
<button type="button" data-value="{{reference}}" aria-pressed="{{chosen}}">
<b>version {{number}}</b> <span class="badge {{tone}}">{{parity}}</span>
{{#if default}}<span class="badge">default</span>{{/if}}<br><small>{{facts}}</small></button>{{/each}}
</div></article>{{else}}<p>No adapter yet: train one, or import one below.</p>{{/each}}
</div>"""


class AdapterList:
    """The list; what happens on a click is the tab's affair."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self.list = gr.HTML([], html_template=_TEMPLATE, js_on_load=CLICK, elem_id="adapters")

    async def items(self, caller: Caller, chosen: str) -> list[dict[str, Any]]:
        """The value of `list`; `chosen` is the reference of the version that is looked at."""
        return items_of(await self._services.adapters.list(caller), caller, chosen)


def items_of(versions: Sequence[AdapterVersion], caller: Caller, chosen: str) -> list[dict[str, Any]]:
    """One entry for each adapter, its newest version first."""
    return [
        {
            "name": name,
            "whose": "" if all(each.owner == caller.owner for each in group) else "(of another key)",
            "versions": [_version(each, chosen) for each in reversed(group)],
        }
        for name, group in (
            (name, list(each)) for name, each in groupby(versions, key=lambda each: f"{each.model}:{each.name}")
        )
    ]


def _version(version: AdapterVersion, chosen: str) -> dict[str, Any]:
    word, tone = parity_word(version)
    facts = [
        datetime.fromtimestamp(version.created_at, UTC).strftime("%Y-%m-%d %H:%M"),
        "imported" if version.job_id is None else "trained here",
        loss_of(version),
    ]
    return {
        "reference": version.reference,
        "number": version.version,
        "chosen": "true" if version.reference == chosen else "false",
        "parity": word,
        "tone": tone,
        "facts": " · ".join(fact for fact in facts if fact),
    }


def parity_word(version: AdapterVersion) -> tuple[str, str]:
    """The certificate in a word, and the badge's tone."""
    if version.certificate is None:
        return "not verified", ""
    return ("verified", "good") if version.certificate["passed"] else ("FAILED", "bad")


def loss_of(version: AdapterVersion) -> str:
    """How much better it predicts what training did not see, where that was measured."""
    metrics = version.facts.get("metrics", {})
    if "eval_loss" not in metrics:
        return ""
    before = metrics.get("eval_loss_before")
    return "held-out loss " + (f"{before:.3f} → " if before is not None else "") + f"{metrics['eval_loss']:.3f}"
