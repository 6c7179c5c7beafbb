"""From a catalog entry to a model that answers: its files, its renderer, its weights, its engine."""

from dataclasses import dataclass

from mini_claude.engine.engine import Engine
from mini_claude.models.base_model import ChatModel
from mini_claude.types import LoadOptions, ModelSpec
from mini_claude.utils.config import Settings


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """What an engine process holds. `dtype` and `device` are what `auto` came to."""

    chat_model: ChatModel
    engine: Engine
    dtype: str
    device: str


def open_model(spec: ModelSpec, options: LoadOptions, settings: Settings) -> LoadedModel:
    """Load everything; the slow part of an engine process's start. Raises `ModelLoadError` and its kin.

    torch and transformers are imported here and nowhere before: importing them takes seconds.
    """
    if options.engine == "echo":
        return _open_echo(spec, options)
    from mini_claude.engine.torch_engine import TorchEngine
    from mini_claude.models.materialize import materialize
    from mini_claude.models.model_factory import create_chat_model
    from mini_claude.models.weights import load_weights

    folder = materialize(spec, settings.models_dir, allow_download=False, hub_owners=settings.hub_owners)
    chat_model = create_chat_model(spec, folder)
    weights = load_weights(folder, options)
    engine = TorchEngine(weights, chat_model.codec, chat_model.context_length, options)
    return LoadedModel(chat_model, engine, str(weights.dtype).removeprefix("torch."), str(weights.device))


def _open_echo(spec: ModelSpec, options: LoadOptions) -> LoadedModel:
    from mini_claude.engine.echo_engine import EchoEngine
    from mini_claude.models.echo_model import EchoModel

    chat_model = EchoModel(spec.name)
    engine = EchoEngine(chat_model.codec, chat_model.context_length, options)
    return LoadedModel(chat_model, engine, dtype="bytes", device="cpu")
