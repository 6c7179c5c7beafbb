"""The line below a chat: which model, how many tokens, how fast, and how full its context is."""

from collections.abc import Sequence
from html import escape

from mini_claude.data.records import Turn
from mini_claude.services.services import Services


async def facts_of(
    services: Services,
    path: Sequence[Turn],
    *,
    first_seconds: float | None = None,
    tokens_per_second: float | None = None,
) -> str:
    """HTML about the path's last answer. The times are known only to who watched it being written."""
    if not path or path[-1].usage is None:
        return ""
    turn, usage = path[-1], path[-1].usage
    parts = [f"<strong>{escape(turn.model or '')}</strong>"]
    if turn.status == "running":
        parts.append("writing …")
    else:
        parts.append(f"{usage.completion_tokens} tokens")
    if first_seconds is not None and tokens_per_second is not None:
        parts.append(f"{tokens_per_second:.0f} tokens/s, first after {first_seconds * 1000:.0f} ms")
    if usage.cached_tokens:
        parts.append(f"{usage.cached_tokens} of {usage.prompt_tokens} prompt tokens were known already")
    length = next((each.context_length for each in await services.models.list() if each.name == turn.model), None)
    if length:
        parts.append(_gauge(usage.total_tokens, length))
    if turn.dropped_turn_ids:
        parts.append(f"{len(turn.dropped_turn_ids)} oldest messages no longer fit and were left out")
    return f'<p class="facts">{" · ".join(parts)}</p>'


def _gauge(num_tokens: int, length: int) -> str:
    percent = min(100, round(100 * num_tokens / length))
    label = f"context: {num_tokens:,} of {length:,} tokens"
    bar = f'<span style="width:{percent}%"></span>'
    return f'{label} <span class="gauge" role="img" aria-label="{percent} % full">{bar}</span>'
