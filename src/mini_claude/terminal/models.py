"""`mini-claude models ...`: the catalog, the files behind it, and what a running server has loaded."""

import asyncio
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mini_claude.data.database import Database
from mini_claude.data.default_models import DefaultModelRepository
from mini_claude.data.models import ModelRepository
from mini_claude.errors import InvalidRequest
from mini_claude.models.catalog import model_folder
from mini_claude.services.catalog import Catalog
from mini_claude.services.default_model import DefaultModel
from mini_claude.terminal.server import ServerClient
from mini_claude.types import ModelFamily, ModelSource, ModelSpec
from mini_claude.utils.config import Settings

app = typer.Typer(no_args_is_help=True, help="Models: list, add, pull, load, unload, rm.")
console = Console()


@contextmanager
def open_catalog(settings: Settings) -> Iterator[Catalog]:
    """The catalog straight from the database: no server is needed."""
    database = Database(settings.effective_database_url)
    try:
        database.migrate()
        yield Catalog(ModelRepository(database), DefaultModel(DefaultModelRepository(database), settings.default_model))
    finally:
        database.close()


@app.command("list")
def list_models() -> None:
    """Show every model, and what the running server has loaded of them."""
    settings = Settings()
    client = ServerClient(settings)
    table = Table("name", "state", "memory", "context", "description", box=None, pad_edge=False)
    if client.is_up():
        for info in client.call("GET", "/api/v1/models")["models"]:
            memory = f"{info['memory_bytes'] / 1e6:.0f} MB" if info["memory_bytes"] else ""
            context = str(info["context_length"] or "")
            table.add_row(info["name"], info["state"], memory, context, Text(info["description"]))
    else:
        with open_catalog(settings) as catalog:
            for spec in asyncio.run(catalog.list()):
                table.add_row(spec.name, "available", "", "", Text(spec.description))
    console.print(table)


@app.command()
def add(
    name: Annotated[str, typer.Argument(help="What clients will call it.")],
    source: Annotated[str, typer.Argument(help="A folder, a .gguf file, or a hub id like owner/name.")],
    family: Annotated[
        Literal["causal_lm", "dialogpt"], typer.Option(help="dialogpt joins turns by EOS and has no system role.")
    ] = "causal_lm",
    description: Annotated[str, typer.Option(help="Shown in lists.")] = "",
) -> None:
    """Add a model of your own to the catalog."""
    settings = Settings()
    spec = ModelSpec(name, _family(family), (_source(source, settings),), description)
    with open_catalog(settings) as catalog:
        asyncio.run(catalog.add(spec))
    console.print(f"added {name}; `mini-claude models load {name}` loads it", markup=False)


@app.command()
def pull(name: Annotated[str, typer.Argument(help="A model of the catalog.")]) -> None:
    """Fetch and prepare a model's files, so that it loads without a network."""
    from mini_claude.models.materialize import materialize  # imports torch for a GGUF file

    settings = Settings()
    with open_catalog(settings) as catalog:
        spec = asyncio.run(catalog.resolve(name))
    with console.status(f"preparing {spec.name}"):
        folder = materialize(spec, settings.models_dir, allow_download=True, hub_owners=settings.hub_owners)
    console.print(f"{spec.name} is ready in {folder}", markup=False)


@app.command()
def load(
    name: Annotated[str, typer.Argument(help="A model of the catalog.")],
    dtype: Annotated[str | None, typer.Option(help="auto, float32, bfloat16 or float16.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N.")] = None,
    quantization: Annotated[str | None, typer.Option(help="int8 or nf4, by torch: where memory is short.")] = None,
) -> None:
    """Load a model into the running server; without options, one that is loaded already stays as it is."""
    body = {"model": name, "dtype": dtype, "device": device, "quantization": quantization}
    client = ServerClient(Settings())
    with console.status(f"loading {name}"):
        info = client.call("POST", "/api/v1/models/load", {key: value for key, value in body.items() if value})
    numbers = info["quantization"] or info["dtype"]
    console.print(f"{info['name']} is {info['state']} ({numbers} on {info['device']})", markup=False)


@app.command()
def unload(name: Annotated[str, typer.Argument(help="A loaded model.")]) -> None:
    """Unload a model from the running server; its memory comes back."""
    ServerClient(Settings()).call("POST", "/api/v1/models/unload", {"model": name})
    console.print(f"unloaded {name}", markup=False)


@app.command()
def rm(name: Annotated[str, typer.Argument(help="A model of the catalog.")]) -> None:
    """Delete a model's prepared files, and its entry if you added it. A folder of yours is never touched."""
    settings = Settings()
    with open_catalog(settings) as catalog:
        spec = asyncio.run(catalog.resolve(name))
        folder = model_folder(settings.models_dir, spec.name)
        had_files = folder.is_dir()
        if had_files:
            shutil.rmtree(folder)
        builtin = catalog.is_builtin(spec.name)
        if not builtin:
            asyncio.run(catalog.remove(spec.name))
    console.print(f"removed {spec.name}" if had_files or not builtin else f"{spec.name} has no files here")


def _family(family: str) -> ModelFamily:
    return "dialogpt" if family == "dialogpt" else "causal_lm"


def _source(source: str, settings: Settings) -> ModelSource:
    """What the argument means: an existing path first, else a hub id."""
    path = Path(source).expanduser()
    checks: list[tuple[bool, Callable[[], ModelSource]]] = [
        (source != "" and path.is_dir(), lambda: ModelSource("folder", str(path.resolve()))),
        (path.is_file() and path.suffix == ".gguf", lambda: ModelSource("gguf", str(path.resolve()))),
    ]
    for applies, make in checks:
        if applies:
            return make()
    owner, slash, rest = source.partition("/")
    if not (slash and owner and rest and "/" not in rest) or path.exists():
        raise InvalidRequest(f"{source!r} is no folder, no .gguf file and no hub id (owner/name).", param="source")
    if owner not in settings.hub_owners:
        raise InvalidRequest(
            f"Downloads from {owner!r} are not allowed; add it to the setting hub_owners if you trust it.",
            param="source",
        )
    return ModelSource("hub", source)
