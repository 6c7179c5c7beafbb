"""From a catalog entry to a model that answers: its files, its renderer, its weights, its engine."""

import asyncio
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, Literal

from mini_claude.engine.engine import Engine
from mini_claude.errors import ModelLoadError, UnsupportedExport
from mini_claude.models.base_model import ChatModel
from mini_claude.runtime.adapter_requests import Base
from mini_claude.runtime.short_process import ShortProcessEnded, run_short
from mini_claude.types import LoadOptions, ModelSpec
from mini_claude.utils.config import Settings
from mini_claude.utils.logging import get_logger

log = get_logger(__name__)

UNPACK_SECONDS: Final = 540.0  # less than the default load_timeout_seconds


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """What an engine process holds. `kind`, `dtype` and `device` are what `auto` came to."""

    chat_model: ChatModel
    engine: Engine
    kind: Literal["llama_cpp", "torch", "echo"]
    dtype: str
    device: str


def open_model(spec: ModelSpec, options: LoadOptions, settings: Settings) -> LoadedModel:
    """Load everything; the slow part of an engine process's start. Raises `ModelLoadError` and its kin.

    torch and transformers are imported here and nowhere before: importing them takes seconds.
    """
    if options.engine == "echo":
        return _open_echo(spec, options)
    from mini_claude.training.gguf_layout import GGUFLayout

    folder = _files(spec, settings)
    if options.engine == "llama_cpp":
        if options.quantization is not None or options.dtype != "auto" or options.device not in ("auto", "cpu"):
            raise ModelLoadError("The llama_cpp engine has gguf_type instead of quantization and dtype, and no GPU.")
        return _open_llama_cpp(spec, folder, options, settings)
    if options.engine == "auto" and _suits_llama_cpp(spec, folder, options):
        try:
            GGUFLayout(folder)  # without one no adapter can be served
            return _open_llama_cpp(spec, folder, options, settings)
        except (ModelLoadError, UnsupportedExport) as error:
            if error.code == "insufficient_memory":  # torch would need more
                raise
            log.warning("llama_cpp.unsuitable", model=spec.name, reason=error.message)
    return _open_torch(spec, folder, options)


def _files(spec: ModelSpec, settings: Settings) -> Path:
    """The model's folder. A GGUF file is unpacked in a process of its own, which takes torch and its memory along."""
    from mini_claude.models.materialize import is_materialized, local_gguf, materialize

    if not is_materialized(spec, settings.models_dir) and any(local_gguf(source) for source in spec.sources):
        try:
            asyncio.run(run_short("unpack", Base(spec, str(settings.models_dir)), UNPACK_SECONDS))
        except ShortProcessEnded as error:
            raise ModelLoadError(f"{spec.name} cannot be unpacked: {error.message}.") from error
    return materialize(spec, settings.models_dir, allow_download=False, hub_owners=settings.hub_owners)


def _suits_llama_cpp(spec: ModelSpec, folder: Path, options: LoadOptions) -> bool:
    from mini_claude.models.materialize import source_gguf
    from mini_claude.utils.model_utils import has_gpu, prefers_llama_cpp

    # A folder that somebody registered may claim anything about where it comes from.
    from_gguf = any(source.kind in ("package", "gguf") for source in spec.sources) and source_gguf(folder) is not None
    return from_gguf and prefers_llama_cpp(options, gpu=has_gpu())


def _open_llama_cpp(spec: ModelSpec, folder: Path, options: LoadOptions, settings: Settings) -> LoadedModel:
    from mini_claude.engine.llama_cpp_engine import LlamaCppEngine
    from mini_claude.models.model_factory import create_chat_model
    from mini_claude.runtime.served_gguf import served_gguf
    from mini_claude.training.adapter_gguf import write_adapter_gguf

    path, gguf_type = served_gguf(spec, folder, settings.models_dir, options)
    chat_model = create_chat_model(spec, folder)
    write_adapter = partial(write_adapter_gguf, folder)
    engine = LlamaCppEngine(path, chat_model.codec, chat_model.context_length, options, write_adapter)
    return LoadedModel(chat_model, engine, "llama_cpp", gguf_type, "cpu")


def _open_torch(spec: ModelSpec, folder: Path, options: LoadOptions) -> LoadedModel:
    from mini_claude.engine.torch_engine import TorchEngine
    from mini_claude.models.model_factory import create_chat_model
    from mini_claude.models.weights import load_weights

    chat_model = create_chat_model(spec, folder)
    weights = load_weights(folder, options)
    engine = TorchEngine(weights, chat_model.codec, chat_model.context_length, options)
    return LoadedModel(
        chat_model, engine, "torch", dtype=str(weights.dtype).removeprefix("torch."), device=str(weights.device)
    )


def _open_echo(spec: ModelSpec, options: LoadOptions) -> LoadedModel:
    from mini_claude.engine.echo_engine import EchoEngine
    from mini_claude.models.echo_model import EchoModel

    chat_model = EchoModel(spec.name)
    engine = EchoEngine(chat_model.codec, chat_model.context_length, options)
    return LoadedModel(chat_model, engine, "echo", dtype="bytes", device="cpu")
