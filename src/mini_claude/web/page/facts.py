"""The line below a chat: which model, how many tokens, how fast, and how full its context is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from mini_claude.data.records import Turn


@dataclass(frozen=True, slots=True)
class Speed:
    """How fast an answer was written, as it came from the engine."""

    first_seconds: float | None  # from the question to the first token, where that is known
    tokens_per_second: float  # from then on


def facts_of(path: Sequence[Turn], context_lengths: Mapping[str, int | None], speed: Speed | None = None) -> str:
    """HTML about the path's last answer. The lengths are by the names of models, in tokens."""
    if not path or path[-1].usage is None:
        return ""
    turn, usage = path[-1], path[-1].usage
    parts = [f"<strong>{escape(turn.model or '')}</strong>"]
    if turn.status == "running":
        parts.append("writing …")
    else:
        parts.append(f"{usage.completion_tokens} tokens")
    if speed is not None:
        first = "" if speed.first_seconds is None else f", first after {speed.first_seconds * 1000:.0f} ms"
        parts.append(f"{speed.tokens_per_second:.0f} tokens/s{first}")
    if usage.cached_tokens:
        parts.append(f"{usage.cached_tokens} of {usage.prompt_tokens} prompt tokens were known already")
    if length := context_lengths.get(turn.model or ""):
        parts.append(_gauge(usage.total_tokens, length))
    if turn.dropped_turn_ids:
        parts.append(f"{len(turn.dropped_turn_ids)} oldest messages no longer fit and were left out")
    return f'<p class="facts">{" · ".join(parts)}</p>'


def _gauge(num_tokens: int, length: int) -> str:
    percent = min(100, round(100 * num_tokens / length))
    label = f"context: {num_tokens:,} of {length:,} tokens"
    bar = f'<span style="width:{percent}%"></span>'
    return f'{label} <span class="gauge" role="img" aria-label="{percent} % full">{bar}</span>'
