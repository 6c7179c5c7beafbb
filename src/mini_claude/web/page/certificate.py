"""The parity certificate in plain words: whether the tuned model says the same wherever it runs."""

from collections.abc import Mapping
from html import escape
from typing import Any, Final

from mini_claude.web.page.proof import FORMS

_STATES: Final = {
    "passed": ("good", "passed", "it says the same as the model that was trained"),
    "failed": ("bad", "FAILED", "it says something else than the model that was trained"),
    "skipped": ("", "not checked", ""),
}


def certificate_html(certificate: Mapping[str, Any] | None) -> str:
    """Every form that was compared; nothing for a job without a certificate."""
    if certificate is None:
        return ""
    tone, word = ("good", "passed") if certificate["passed"] else ("bad", "FAILED")
    steps = "".join(map(_step, certificate["steps"]))
    return (
        f'<h4>Certificate <span class="badge {tone}">{word}</span></h4><p>On {certificate["num_positions"]:,} places '
        f"in held-out texts it was compared what the model says next. {escape(str(certificate['reason']))}</p>"
        f'<ul class="certificate">{steps}</ul>'
    )


def _step(step: Mapping[str, Any]) -> str:
    tone, word, meaning = _STATES[step["state"]]
    agreement = step.get("top1_agreement")
    parts = [step["reason"] or meaning]
    if agreement is not None:
        parts.append(f"the likeliest next word is the same in {agreement:.0%} of the places")
    told = escape("; ".join(part.rstrip(".") for part in parts if part))
    name = escape(FORMS.get(step["name"], step["name"]))
    return f'<li><span class="badge {tone}">{word}</span> <b>{name}</b>: {told}.</li>'
