"""`mini-claude datasets ...`: bring training data in, and see what a model would learn from it."""

import tempfile
from pathlib import Path
from typing import Annotated, Any, Final

import httpx
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mini_claude.errors import InvalidRequest
from mini_claude.terminal.server import ServerClient, running_server
from mini_claude.utils.config import Settings

HUB: Final = "hub:"
BAR_WIDTH: Final = 40
SUPERVISED: Final = "not bold green"
CONTEXT: Final = "not bold dim"

app = typer.Typer(no_args_is_help=True, help="Training data: add, list, show, rm.")
console = Console(emoji=False)

Name = Annotated[str, typer.Argument(help="The dataset's name.")]


@app.command()
def add(
    name: Annotated[str, typer.Argument(help="What the dataset will be called.")],
    source: Annotated[str, typer.Argument(help="A file, or hub:owner/name or hub:owner/name:split.")],
) -> None:
    """Upload a file, or a dataset of the hub; its format is detected, and every broken row counted."""
    settings = Settings()
    if source.startswith(HUB):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "data.jsonl"
            _fetch(source.removeprefix(HUB), path, settings)
            with running_server(settings, preload=False) as client:
                dataset = upload(client, path, name)
    else:
        with running_server(settings, preload=False) as client:
            dataset = upload(client, Path(source).expanduser(), name)
    _describe(dataset)
    console.print(f"\nsee what a model would learn: mini-claude datasets show {dataset['name']} --model default")


def upload(client: ServerClient, path: Path, name: str | None) -> dict[str, Any]:
    """Send a file to the server; the dataset as it answers. `name` None: like the file.

    Raises `InvalidRequest` for a file that cannot be read, and what the server refuses.
    """
    try:
        with path.open("rb") as file, console.status(f"uploading {path.name}"):
            fields = {} if name is None else {"name": name}
            form = {"file": (path.name, file, "application/octet-stream")}
            response = client.http.post("/api/v1/datasets", data=fields, files=form)
    except httpx.TransportError as error:
        raise client.unreachable() from error
    except OSError as error:
        raise InvalidRequest(f"{path} cannot be read: {error.strerror}.", param="source") from error
    client.raise_for(response)
    dataset: dict[str, Any] = response.json()
    return dataset


def _fetch(hub_id: str, path: Path, settings: Settings) -> None:
    from mini_claude.training.hub_dataset import DEFAULT_SPLIT, write_hub_rows

    hub_id, _, split = hub_id.partition(":")
    owner, _, rest = hub_id.partition("/")
    if not owner or not rest or "/" in rest or not rest.strip(".") or not owner.strip("."):
        raise InvalidRequest(f"{hub_id!r} is no hub id: write hub:owner/name or hub:owner/name:split.", param="source")
    if owner not in settings.hub_owners:
        raise InvalidRequest(
            f"Downloads from {owner!r} are not allowed; add it to the setting hub_owners if you trust it.",
            param="source",
        )
    with console.status(f"fetching {hub_id}"):
        write_hub_rows(hub_id, split or DEFAULT_SPLIT, path, settings.max_dataset_bytes)


@app.command("list")
def list_datasets() -> None:
    """Show your datasets."""
    table = Table("name", "format", "file", "rows", "broken", "size", box=None, pad_edge=False)
    with running_server(Settings(), preload=False) as client:
        for each in client.call("GET", "/api/v1/datasets")["datasets"]:
            broken = str(each["num_broken"] or "")
            table.add_row(
                each["name"], each["format"], each["container"], str(each["num_rows"]), broken, _size(each["num_bytes"])
            )
    console.print(table)


@app.command()
def show(
    name: Name,
    model: Annotated[str | None, typer.Option(help="Show it as this model would be given it.")] = None,
    rows: Annotated[int, typer.Option(help="Rows to show token by token.", min=0, max=50)] = 3,
    max_length: Annotated[int, typer.Option(help="Tokens of an example; the rest is cut.", min=8)] = 512,
    measure: Annotated[bool, typer.Option(help="Take a few training steps and say what a job would cost.")] = False,
) -> None:
    """Show what a dataset holds; with --model, the tokens that would be learned."""
    with running_server(Settings(), preload=False) as client:
        dataset = client.call("GET", f"/api/v1/datasets/{name}")
        if model is None and not measure:
            _describe(dataset)
            return
        console.print(_line(dataset), markup=False, highlight=False)
        body = {"model": model, "num_rows": rows, "max_length": max_length, "measure": measure}
        with console.status("examining" + (" and measuring" if measure else "")):
            report = client.call("POST", f"/api/v1/datasets/{name}/preview", body)
    _show_report(report)


@app.command()
def rm(name: Name) -> None:
    """Delete a dataset; refused while a training job uses it."""
    with running_server(Settings(), preload=False) as client:
        client.call("DELETE", f"/api/v1/datasets/{name}")
    console.print(f"removed {name}", markup=False)


def _size(num_bytes: int) -> str:
    if num_bytes < 1000:
        return f"{num_bytes} B"
    return f"{num_bytes / 1e6:.1f} MB" if num_bytes >= 1e5 else f"{num_bytes / 1e3:.1f} kB"


def _line(dataset: dict[str, Any]) -> str:
    return (
        f"{dataset['name']}: {dataset['num_rows']} rows of {dataset['format']} in {dataset['container']}, "
        f"{_size(dataset['num_bytes'])}, sha256 {dataset['sha256'][:12]}"
    )


def _describe(dataset: dict[str, Any]) -> None:
    console.print(_line(dataset), markup=False, highlight=False)
    _show_problems(dataset["num_broken"], dataset["problems"])


def _show_problems(num_broken: int, problems: list[dict[str, Any]]) -> None:
    if not num_broken:
        return
    console.print(f"broken rows: {num_broken}", style="yellow", highlight=False)
    for problem in problems:
        line = f", line {problem['line']}" if problem["line"] is not None else ""
        console.print(f"  row {problem['row']}{line}: {problem['reason']}", markup=False, highlight=False)
    if num_broken > len(problems):
        console.print(f"  and {num_broken - len(problems)} more", highlight=False)


def _show_report(report: dict[str, Any]) -> None:
    for sample in report["samples"]:
        console.print()
        console.print(_tokens(sample))
    console.print()
    for line in _figures(report):
        console.print(line, markup=False, highlight=False)
    _show_problems(report["num_broken"], report["problems"])
    _show_lengths(report["lengths"])
    if report["estimate"] is not None:
        _show_estimate(report["estimate"])


def _figures(report: dict[str, Any]) -> list[str]:
    lines = [
        f"examples for {report['model']}: {report['num_examples']}",
        f"tokens: {report['num_tokens']}, of which {report['num_supervised_tokens']} are learned "
        f"({report['supervised_share']:.1%})",
    ]
    if not report["complete"]:
        lines.append(f"time was up after {report['num_rows']} rows: the figures hold for these")
    if report["num_truncated"]:
        lines.append(
            f"cut to {report['max_length']} tokens: {report['num_truncated']} examples, which lose "
            f"{report['num_truncated_tokens']} tokens; the longest has {report['longest']}"
        )
    if report["num_duplicates"]:
        pairs = ", ".join(f"{each['row']} = {each['of_row']}" for each in report["duplicates"][:5])
        lines.append(f"rows that repeat an earlier one: {report['num_duplicates']} ({pairs})")
    return lines


def _tokens(sample: dict[str, Any]) -> Text:
    """The sample as the model gets it, what is learned in colour."""
    part = "" if sample["part"] == "example" else f" ({sample['part']})"
    text = Text(f"row {sample['row']}{part}: {len(sample['tokens'])} tokens\n", style="bold")
    for token in sample["tokens"]:
        text.append(_visible(token["text"]), style=SUPERVISED if token["supervised"] else CONTEXT)
    if sample["truncated"]:
        text.append(f"\n... {sample['truncated']} tokens are cut off", style="not bold yellow")
    return text


def _visible(text: str) -> str:
    """Without what a terminal would obey instead of showing it."""
    return "".join(c if c.isprintable() or c in "\n\t\u00a0" else "\N{REPLACEMENT CHARACTER}" for c in text)


def _show_lengths(lengths: list[dict[str, int]]) -> None:
    table = Table("tokens", "examples", "", box=None, pad_edge=False)
    most = max(bar["num_examples"] for bar in lengths)
    for bar in lengths:
        width = max(1, round(BAR_WIDTH * bar["num_examples"] / most))
        table.add_row(f"up to {bar['up_to']}", str(bar["num_examples"]), "█" * width)
    console.print(table)


def _show_estimate(estimate: dict[str, Any]) -> None:
    minutes = estimate["seconds"] / 60
    shown = f"{minutes:.0f} minutes" if minutes >= 2 else f"{estimate['seconds']:.0f} seconds"
    console.print(
        f"Training takes about {shown} ({estimate['num_steps']} steps, {estimate['tokens_per_second']:.0f} tokens/s) "
        f"and {estimate['peak_memory_bytes'] / 1e9:.1f} GB of memory, as measured on this machine. "
        "The parity check at the end of a job comes on top.",
        style="bold",
        highlight=False,
    )
