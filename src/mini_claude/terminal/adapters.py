"""`mini-claude adapters ...` and `mini-claude verify`: what training made, for this server and for other programs."""

import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Final
from urllib.parse import quote

import httpx
import typer
from rich.console import Console
from rich.table import Table

from mini_claude.errors import InvalidRequest, MiniClaudeError, StorageError
from mini_claude.models.adapter_files import CONFIG_FILE, WEIGHTS_FILE
from mini_claude.terminal.server import ServerClient, running_server
from mini_claude.utils.config import Settings

PATH: Final = "/api/v1/models/adapters"
PACKED: Final = ("peft", "merged")  # formats that are folders, and come as .zip

app = typer.Typer(no_args_is_help=True, help="Adapters: list, show, import, export, rm.")
console = Console(emoji=False)

Reference = Annotated[str, typer.Argument(help="model:adapter, its newest version, or model:adapter@version.")]


@app.command("list")
def list_adapters() -> None:
    """Show every version of every adapter."""
    table = Table("adapter", "made by", "held-out loss", "parity", box=None, pad_edge=False)
    with running_server(Settings(), preload=False) as client:
        for each in client.call("GET", PATH)["adapters"]:
            table.add_row(each["reference"], each["job_id"] or "import", _loss(each), _parity(each["certificate"]))
    console.print(table)


@app.command()
def show(reference: Reference) -> None:
    """Show where a version comes from, and its parity certificate."""
    with running_server(Settings(), preload=False) as client:
        _describe(client.call("GET", _path(reference)))


@app.command("import")
def import_adapter(
    folder: Annotated[Path, typer.Argument(help="The folder that PEFT's save_pretrained wrote.")],
    name: Annotated[str, typer.Option(help="What the adapter will be called.")],
    model: Annotated[str | None, typer.Option(help="The base model; the default one if left out.")] = None,
) -> None:
    """Import a LoRA adapter that was trained elsewhere."""
    fields = {"name": name} | ({"model": model} if model else {})
    with running_server(Settings(), preload=False) as client:
        try:
            with (folder / CONFIG_FILE).open("rb") as config, (folder / WEIGHTS_FILE).open("rb") as weights:
                files = {"config": (CONFIG_FILE, config), "weights": (WEIGHTS_FILE, weights)}
                with console.status(f"importing {folder.name}"):
                    response = client.http.post(PATH, data=fields, files=files)
        except httpx.TransportError as error:
            raise client.unreachable() from error
        except OSError as error:
            raise InvalidRequest(
                f"{folder} cannot be read: {error.strerror}: {Path(error.filename or folder).name}. Name the folder "
                "that PEFT wrote.",
                param="folder",
            ) from error
        client.raise_for(response)
    reference = response.json()["reference"]
    console.print(f"imported {reference}", markup=False, soft_wrap=True)
    console.print(f"prove it: mini-claude verify {reference}", markup=False, soft_wrap=True)
    console.print(f"chat with it: mini-claude chat --model {reference}", markup=False, soft_wrap=True)


@app.command()
def export(
    reference: Reference,
    to: Annotated[Path, typer.Argument(help="A new folder, or for GGUF a file; nothing is overwritten.")],
    wanted: Annotated[
        str, typer.Option("--format", help="peft, merged (for transformers), gguf or gguf-merged (for llama.cpp).")
    ] = "peft",
    tensor_type: Annotated[str, typer.Option(help="Of a gguf-merged file: f32, f16 or q8_0.")] = "f16",
) -> None:
    """Write a version for other programs."""
    to = to.expanduser()
    if to.exists():
        raise InvalidRequest(f"{to} exists already; name a new one.", param="to")
    body = {"format": wanted, "tensor_type": tensor_type}
    with (
        running_server(Settings(), preload=False) as client,
        _storage_errors(to),
        tempfile.TemporaryDirectory(dir=_existing(to.parent)) as folder,
    ):
        path = Path(folder) / "export"
        with console.status(f"exporting {reference}"):
            _download(client, f"{_path(reference)}/export", body, path)
        if wanted in PACKED:
            with zipfile.ZipFile(path) as archive:
                archive.extractall(Path(folder) / "unpacked")
            (unpacked,) = (Path(folder) / "unpacked").iterdir()
            unpacked.rename(to)
        else:
            path.rename(to)
    console.print(f"wrote {to}", markup=False, soft_wrap=True)


@app.command()
def rm(reference: Reference) -> None:
    """Delete one version, model:adapter@version, with its files."""
    with running_server(Settings(), preload=False) as client:
        client.call("DELETE", _path(reference))
    console.print(f"removed {reference}", markup=False)


def verify(reference: Reference) -> None:
    """Prove that an adapter says the same in trainer, engine and exports; it is stored as its certificate."""
    with running_server(Settings(), preload=False) as client:
        with console.status(f"comparing the forms of {reference}"):
            adapter = client.call("POST", f"{_path(reference)}/verify")
        _describe(adapter)
    if not adapter["certificate"]["passed"]:
        raise MiniClaudeError(f"{adapter['reference']} did not pass: {adapter['certificate']['reason']}")


def _path(reference: str) -> str:
    return f"{PATH}/{quote(reference, safe=':@')}"


def _download(client: ServerClient, path: str, body: dict[str, str], target: Path) -> None:
    try:
        with client.http.stream("POST", path, json=body) as response:
            if not response.is_success:
                response.read()
                client.raise_for(response)
            with target.open("wb") as file:
                for chunk in response.iter_bytes():
                    file.write(chunk)
    except httpx.TransportError as error:
        raise client.unreachable() from error


@contextmanager
def _storage_errors(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(f"{target} cannot be written: {error.strerror}.") from error


def _existing(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _loss(adapter: dict[str, Any]) -> str:
    metrics = adapter["facts"].get("metrics", {})
    if "eval_loss" not in metrics:
        return ""
    before = metrics.get("eval_loss_before")
    return (f"{before:.3f} -> " if before is not None else "") + f"{metrics['eval_loss']:.3f}"


def _parity(certificate: dict[str, Any] | None) -> str:
    if certificate is None:
        return "not verified"
    return "passed" if certificate["passed"] else "FAILED"


def _describe(adapter: dict[str, Any]) -> None:
    facts, certificate = adapter["facts"], adapter["certificate"]
    lines = [
        adapter["reference"],
        f"made by: {adapter['job_id'] or 'import'}",
        f"base weights: sha256 {facts.get('base_revision', '')[:12]}",
    ]
    if facts.get("dataset_sha256"):
        lines.append(f"dataset: sha256 {facts['dataset_sha256'][:12]}")
    if _loss(adapter):
        lines.append(f"held-out loss: {_loss(adapter)}")
    lines.append(f"parity: {_parity(certificate)}" + (f". {certificate['reason']}" if certificate else ""))
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    if certificate is not None:
        _show_steps(certificate["steps"])


def _difference(step: dict[str, Any]) -> str:
    if step["state"] == "passed" and step["max_difference"] > step["tolerance"]:
        return f"{step['mean_difference']:.2g} (mean)"
    return f"{step['max_difference']:.2g} (largest)"


def _show_steps(steps: list[dict[str, Any]]) -> None:
    """Differences are of log-probabilities; of a form that rounds the mean is what was judged."""
    table = Table("form", "state", "difference", "tolerance", "same best token", box=None, pad_edge=False)
    notes = []
    for step in steps:
        measured = step["max_difference"] is not None
        table.add_row(
            step["name"],
            step["state"],
            _difference(step) if measured else "",
            f"{step['tolerance']:.2g}" if measured else "",
            f"{step['top1_agreement']:.0%}" if measured else "",
        )
        if step["reason"]:
            notes.append(f"{step['name']}: {step['reason']}")
    console.print(table)
    for note in notes:
        console.print(note, style="dim", markup=False, highlight=False, soft_wrap=True)
