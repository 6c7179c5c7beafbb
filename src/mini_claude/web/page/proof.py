"""What is known of the model that answered: its version, its parity certificate, where its weights are from."""

from collections.abc import Mapping
from datetime import UTC, datetime
from html import escape
from typing import Any, Final

from mini_claude.data.records import AdapterVersion
from mini_claude.services.identity import Caller
from mini_claude.services.services import Services
from mini_claude.types import ModelOrigin, SamplingParams

FORMS: Final = {
    "engine": "when it chats (torch)",
    "engine_llama_cpp": "when it chats (llama.cpp)",
    "merged": "exported as a whole model",
    "gguf_adapter": "exported as GGUF adapter",
    "gguf_adapter_quantized": "the same on a rounded model",
    "gguf_merged": "exported as GGUF model",
}


async def proof_of(services: Services, caller: Caller, name: str, params: SamplingParams | None = None) -> str:
    """HTML about a model or a version of an adapter, and its settings.

    Raises `NotFound` for one that is gone, and `Forbidden` for one that the caller may not use.
    """
    info = await services.models.get(caller, name)
    base, colon, _ = name.partition(":")
    origin = await services.models.origin(base)
    lines = [f"<strong>{escape(name)}</strong>"]
    if colon:
        version = await services.adapters.find(caller, name)
        made = datetime.fromtimestamp(version.created_at, UTC).strftime("%Y-%m-%d")
        lines += [parity_of(version.certificate), f"made on {made}", base_line(version, origin)]
    lines.append(origin_line(origin))
    if info.engine is not None:
        computing = " · ".join(part for part in (info.engine, info.quantization or info.dtype, info.device) if part)
        lines.append(f"computed by {escape(computing)}")
    if params is not None:
        lines.append(settings_line(params))
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
    location = origin.source.location
    match origin.source.kind:
        case "package":
            package, _, file = location.partition("/")
            place = f"file {file} of the Python package {package} {origin.version or ''}"
        case "hub":
            place = f"{location} of the model hub"
        case "folder" | "gguf":  # where on the disk is nobody's business
            place = f"the local file or folder {location.rstrip('/').rpartition('/')[2]}"
    return f'weights: {escape(place)}, <abbr title="{origin.sha256}">sha256 {origin.sha256[:12]}</abbr>'


def base_line(version: AdapterVersion, origin: ModelOrigin | None) -> str:
    """One line of HTML: whether the base is the one that the adapter was made for."""
    name = escape(version.model)
    made_for = str(version.facts.get("base_revision", ""))
    if origin is None or not made_for:
        return f"added to {name}"
    if made_for == origin.sha256:
        return f"added to {name}, exactly the weights it was made for"
    return f'<span class="badge bad">other base</span> it was made for other weights (sha256 {escape(made_for[:12])})'


def settings_line(params: SamplingParams) -> str:
    """How the words were chosen, as far as it differs from plain sampling."""
    plain = SamplingParams()
    parts = [
        f"{name.replace('_', ' ')} {value:g}"
        for name in ("temperature", "max_tokens", "top_p", "top_k", "min_p", "repetition_penalty", "seed")
        if (value := getattr(params, name)) != getattr(plain, name)
    ]
    return "settings: " + (", ".join(parts) or "none")


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
        escape(FORMS.get(step["name"], step["name"])),
        escape(step["state"]),
        f"{shown:.2g} ({'mean' if by_mean else 'largest'})" if measured else "",
        f"{step['tolerance']:.2g}" if measured else "",
        f"{step['top1_agreement']:.0%}" if measured and step["top1_agreement"] is not None else "",
    ]
    note = f'<tr><td colspan="5"><small>{escape(step["reason"])}</small></td></tr>' if step["reason"] else ""
    return "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + f"</tr>{note}"
