"""`mini-claude bench`: how fast this machine answers with a model, as clients see it over HTTP."""

import asyncio
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Final

import httpx
import typer
from rich.console import Console
from rich.table import Table

from mini_claude.errors import InvalidRequest, MiniClaudeError
from mini_claude.terminal.bench_report import write_report
from mini_claude.terminal.measurement import Measurement, Reply, measurement
from mini_claude.terminal.server import ServerClient, running_server
from mini_claude.utils.config import Settings

MAX_CONCURRENCY: Final = 256


def bench(
    model: Annotated[str | None, typer.Option(help="The model that answers.")] = None,
    concurrency: Annotated[str, typer.Option(help="How many clients at once, one measurement each.")] = "1,4,16",
    tokens: Annotated[int, typer.Option(min=8, max=4096, help="max_tokens of a reply.")] = 100,
    plot: Annotated[Path | None, typer.Option(help="Also write the figures as a page with plots (.html).")] = None,
) -> None:
    """Measure tokens per second, time to first token, time between tokens and memory on this machine."""
    levels = _levels(concurrency)
    if plot is not None and (plot.suffix != ".html" or not plot.parent.is_dir()):
        raise InvalidRequest("plot has to be a file that ends in .html, in a folder that is there.", param="plot")
    console = Console()
    with running_server(Settings()) as client:
        name = client.call("GET", f"/api/v1/models/{model or 'default'}")["name"]
        results = []
        with console.status(f"asking {name}"):
            for number in levels:
                asyncio.run(_ask_at_once(client, name, number, tokens, "warm-up"))
                replies = asyncio.run(_ask_at_once(client, name, number, tokens, "story"))
                info = client.call("GET", f"/api/v1/models/{name}")
                results.append(measurement(replies, (info["memory_bytes"] or 0) / 1e6))
    title = f"{name} on the {info['engine']} engine ({info['dtype']}), replies of up to {tokens} tokens"
    console.print(_table(title, results))
    if plot is not None:
        write_report(plot, title, results)
        console.print(f"wrote {plot}", markup=False)


def _levels(text: str) -> list[int]:
    try:
        levels = [int(part) for part in text.split(",")]
    except ValueError:
        levels = []
    if not levels or not all(1 <= level <= MAX_CONCURRENCY for level in levels):
        raise InvalidRequest(
            f"concurrency has to be numbers from 1 to {MAX_CONCURRENCY} with commas between, as in 1,4,16.",
            param="concurrency",
        )
    return levels


async def _ask_at_once(client: ServerClient, model: str, concurrency: int, tokens: int, theme: str) -> list[Reply]:
    """Questions that differ from their first words on, so that none profits from another's prefix."""
    timeout = httpx.Timeout(30.0, read=None, pool=None)
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(
        base_url=client.url, headers=client.http.headers, timeout=timeout, limits=limits, trust_env=False
    ) as http:
        questions = [
            f"{number}, {theme} {number}: write a long story with many turns about a fox, a river and {number} stones."
            for number in range(concurrency)
        ]
        return await asyncio.gather(*(_ask(client, http, model, tokens, question) for question in questions))


async def _ask(client: ServerClient, http: httpx.AsyncClient, model: str, tokens: int, question: str) -> Reply:
    body: dict[str, Any] = {"model": model, "max_tokens": tokens, "temperature": 0, "stream": True}
    body["messages"] = [{"role": "user", "content": question}]
    pieces: list[float] = []
    num_tokens = 0
    asked = time.perf_counter()
    try:
        async with http.stream("POST", "/api/v1/chat/completions", json=body) as response:
            if not response.is_success:
                await response.aread()
                client.raise_for(response)
            event = ""
            async for line in response.aiter_lines():
                if line.startswith("event:"):
                    event = line.removeprefix("event:").strip()
                elif line.startswith("data:") and event == "delta":
                    pieces.append(time.perf_counter())
                elif line.startswith("data:"):
                    data = json.loads(line.removeprefix("data:"))
                    if event == "error":
                        raise MiniClaudeError(data["error"]["message"])
                    num_tokens = data["usage"]["completion_tokens"] if event == "end" else num_tokens
    except httpx.TransportError as error:
        raise client.unreachable() from error
    return Reply(asked, tuple(pieces), num_tokens)


def _table(title: str, results: Sequence[Measurement]) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for heading in ("clients", "tokens/s", "first token p50 / p95", "between tokens p50 / p95 / p99", "engine memory"):
        table.add_column(heading, justify="right")
    for result in results:
        table.add_row(
            str(result.concurrency),
            f"{result.tokens_per_second:.1f}",
            f"{result.first_p50:.0f} / {result.first_p95:.0f} ms",
            f"{result.between_p50:.0f} / {result.between_p95:.0f} / {result.between_p99:.0f} ms",
            f"{result.memory_mb:.0f} MB",
        )
    return table
