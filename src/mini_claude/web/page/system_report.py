"""The System tab's contents as HTML: health, what was served since the start, plots, recent errors."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from typing import Final

from prometheus_client.parser import text_string_to_metric_families

from mini_claude.services.health import Health
from mini_claude.services.recent_errors import LoggedError
from mini_claude.web.page.system_history import HISTORY_SECONDS, Sample, token_rates
from mini_claude.web.page.time_plot import time_plot

_GB: Final = 1e9
_MB: Final = 1e6
_PREFIX: Final = "mini_claude_"
_READINESS: Final = "/api/v1/health"


def health_html(health: Health, version: str, figures: Sequence[str] = ()) -> str:
    """A sentence that says whether all is well, the parts, and for admins `figures_of` the whole."""
    state, word = ("good", "Ready to answer") if health.ready else ("bad", "Not ready")
    lines = [
        f'<span class="badge {state}">{word}</span>',
        f"database: {escape(health.database)}",
        f"supervisor: {escape(health.supervisor)}",
        f"default model {escape(health.default_model)}: {escape(health.default_model_state or 'unknown')}",
        *figures,
        f"version {escape(version)}",
    ]
    return '<ul class="proof">' + "".join(f"<li>{line}</li>" for line in lines) + "</ul>"


def figures_of(free_bytes: int, totals: Mapping[str, float]) -> list[str]:
    """What was served and what is left; `totals` as `totals_of` gives them."""
    return [
        f"free disk: {free_bytes / _GB:,.1f} GB",
        f"{totals['answers']:,.0f} answers with {totals['tokens']:,.0f} tokens since the server started",
        f"first word after {totals['first_seconds']:.2f} s on average",
        f"{totals['requests']:,.0f} requests, {totals['faults']:,.0f} of them failed on our side",
    ]


def totals_of(exposition: str) -> dict[str, float]:
    """Sums over a Prometheus text: answers, tokens, first_seconds (a mean), requests, faults.

    A fault is an answer of status 500 and above, but for a "not ready" to whoever asks whether all is ready.
    """
    sums = dict.fromkeys(("answers", "tokens", "seconds", "first", "requests", "faults"), 0.0)
    names = {
        "replies_total": "answers",
        "completion_tokens_total": "tokens",
        "time_to_first_token_seconds_sum": "seconds",
        "time_to_first_token_seconds_count": "first",
        "http_requests_total": "requests",
    }
    for family in text_string_to_metric_families(exposition):
        for sample in family.samples:
            short = names.get(sample.name.removeprefix(_PREFIX))
            if short is not None:
                sums[short] += sample.value
            is_fault = short == "requests" and sample.labels["status"] >= "500"
            if is_fault and sample.labels["route"] != _READINESS:
                sums["faults"] += sample.value
    return sums | {"first_seconds": sums["seconds"] / sums["first"] if sums["first"] else 0.0}


def plots_html(samples: Sequence[Sample], now: float) -> str:
    """Load, memory, requests, speed and cache over the last five minutes."""
    if not samples:
        return "<p class='facts'>No figures yet.</p>"

    def line(value: Callable[[Sample], float]) -> list[tuple[float, float]]:
        return [(sample.at, value(sample)) for sample in samples]

    def plot(title: str, unit: str, lines: Mapping[str, Sequence[tuple[float, float]]], top: float = 0) -> str:
        return time_plot(title, unit, lines, now=now, seconds=HISTORY_SECONDS, top=top)

    last = samples[-1]
    roles = sorted({role for sample in samples for role in sample.processes})
    gpus = sorted(last.gpus)
    plots = [
        plot("Processor, all cores", "%", {"busy": line(lambda s: s.cpu)}, 100),
        plot("Memory of the machine", "GB", {"used": line(lambda s: s.memory_used / _GB)}, last.memory_total / _GB),
        plot(
            "Memory by process",
            "MB",
            {role: [(s.at, s.processes.get(role, 0) / _MB) for s in samples] for role in roles},
        ),
        plot("Answers", "", {"being written": line(lambda s: s.running), "waiting": line(lambda s: s.waiting)}, 4),
        plot("Speed, tokens (about ¾ word) a second", "", {"all models": token_rates(samples)}, 10),
        plot(
            "What models remember (KV cache)",
            "tokens",
            {"in use": line(lambda s: s.kv_used), "kept for reuse": line(lambda s: s.kv_cached)},
            last.kv_total,
        ),
        *(
            plot(
                f"Memory of {gpu}",
                "GB",
                {"used": [(s.at, s.gpus[gpu][0] / _GB) for s in samples if gpu in s.gpus]},
                last.gpus[gpu][1] / _GB,
            )
            for gpu in gpus
        ),
    ]
    return f'<div class="plots">{"".join(plots)}</div>'


def errors_html(errors: Iterable[LoggedError]) -> str:
    """A table, newest first."""
    rows = "".join(
        f"<tr><td>{escape(error.at[:19].replace('T', ' '))}</td>"
        f'<td><span class="badge {"bad" if error.level != "warning" else ""}">{escape(error.level)}</span></td>'
        f"<td>{escape(error.process)}</td><td>{escape(error.event)}</td>"
        f"<td>{escape(', '.join(f'{name} {value}' for name, value in error.ids.items()))}</td></tr>"
        for error in errors
    )
    if not rows:
        return "<p class='facts'>None in the log files.</p>"
    head = "<tr><th>when (UTC)</th><th>how bad</th><th>process</th><th>what</th><th>details</th></tr>"
    return f'<div class="scroll"><table class="plain"><thead>{head}</thead><tbody>{rows}</tbody></table></div>'
