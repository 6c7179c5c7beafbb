"""What is known of the model that answered: its version, its parity certificate, where its weights are from."""

from collections.abc import Mapping
from datetime import UTC, datetime
from html import escape
from typing import Any, Final

from mini_claude.services.services import Services
from mini_claude.types import ModelOrigin

_SOURCES: Final = {"package": "Python package", "hub": "model hub", "folder": "folder", "gguf": "GGUF file"}
_FORMS: Final = {
    "engine": "when it chats (torch)",
    "engine_llama_cpp": "when it chats (llama.cpp)",
    "merged": "exported as a whole model",
    "gguf_adapter": "exported as GGUF adapter",
    "gguf_adapter_quantized": "the same on a rounded model",
    "gguf_merged": "exported as GGUF model",
}


async def proof_of(services: Services, name: str) -> str:
    """HTML about a model or a version of an adapter. Raises `NotFound` for one that is gone."""
    info = await services.models.get(name)
    base, colon, _ = name.partition(":")
    lines = [f"<strong>{escape(name)}</strong>"]
    if colon:
        version = await services.adapters.find(name)
        lines.append(parity_of(version.certificate))
        lines.append(f"made {_day(version.created_at)} on {escape(version.model)}")
    lines.append(origin_line(await services.models.origin(base)))
    if info.engine is not None:
        computing = " · ".join(part for part in (info.engine, info.quantization or info.dtype, info.device) if part)
        lines.append(f"computed by {escape(computing)}")
    return '<ul class="proof">' + "".join(f"<li>{line}</li>" for line in lines) + "</ul>"


def parity_of(certificate: Mapping[str, Any] | None) -> str:
    """One line of HTML: whether it was measured that this version says the same wherever it runs."""
    if certificate is None:
        return '<span class="badge">not verified</span> nobody has measured yet that it says the same everywhere'
    state, word = ("good", "verified") if certificate["passed"] else ("bad", "FAILED")
    return f'<span class="badge {state}">{word}</span> {escape(str(certificate["reason"]))}'


def origin_line(origin: ModelOrigin | None) -> str:
    """One line of HTML about a base model's weights."""
    if origin is None:
        return "its weights are not on this machine yet"
    name = escape(origin.source.location.rpartition("/")[2] if origin.source.kind == "gguf" else origin.source.location)
    version = f" {escape(origin.version)}" if origin.version else ""
    kind = _SOURCES[origin.source.kind]
    return f'weights from {kind}{version} {name}, <abbr title="{origin.sha256}">sha256 {origin.sha256[:12]}</abbr>'


def certificate_table(certificate: Mapping[str, Any]) -> str:
    """HTML of every form that was compared. Differences are of log-probabilities, their mean where a form rounds."""
    rows = "".join(_row(step) for step in certificate.get("steps", ()))
    return (
        '<table class="plain"><thead><tr><th>The tuned model …</th><th>result</th><th>difference</th>'
        f"<th>allowed</th><th>same best word</th></tr></thead><tbody>{rows}</tbody></table>"
    )


def _row(step: Mapping[str, Any]) -> str:
    measured = step["max_difference"] is not None
    by_mean = measured and step["state"] == "passed" and step["max_difference"] > step["tolerance"]
    shown = step["mean_difference"] if by_mean else step["max_difference"]
    cells = [
        escape(_FORMS.get(step["name"], step["name"])),
        escape(step["state"]),
        f"{shown:.2g} ({'mean' if by_mean else 'largest'})" if measured else "",
        f"{step['tolerance']:.2g}" if measured else "",
        f"{step['top1_agreement']:.0%}" if measured and step["top1_agreement"] is not None else "",
    ]
    note = f'<tr><td colspan="5"><small>{escape(step["reason"])}</small></td></tr>' if step["reason"] else ""
    return "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + f"</tr>{note}"


def _day(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d")
