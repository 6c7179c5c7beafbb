"""The embedded model on our torch engine, as an engine process of the product would hold it."""

from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from mini_claude.engine.torch_engine import TorchEngine
from mini_claude.models.catalog import BUILTIN
from mini_claude.models.causal_lm import CausalLM
from mini_claude.models.materialize import materialize
from mini_claude.models.weights import load_weights
from mini_claude.types import LoadOptions
from mini_claude.utils.config import Settings


def embedded_model() -> Path:
    """Its folder in the data directory, made the first time.

    In a process of its own: a contestant's peak memory would begin at that of the process that starts it.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_materialized).result()


def _materialized() -> Path:
    return materialize(BUILTIN[0], Settings().models_dir, allow_download=False, hub_owners=())


def load_engine(folder: Path) -> tuple[CausalLM, TorchEngine]:
    """The renderer and the engine with default options."""
    options = LoadOptions()
    chat_model = CausalLM.from_folder("benchmark", folder)
    with ThreadPoolExecutor(1) as loader:  # as engine_server.py does: torch must not be used by a second living thread
        weights = loader.submit(load_weights, folder, options).result()
    engine = TorchEngine(weights, chat_model.codec, chat_model.context_length, options)
    return chat_model, engine
