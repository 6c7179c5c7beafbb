"""From a catalog entry to the class that knows how its conversations look."""

from collections.abc import Callable
from pathlib import Path
from typing import Final

from mini_claude.models.base_model import ChatModel
from mini_claude.models.causal_lm import CausalLM
from mini_claude.models.dialogpt_wrapper import DialoGPT
from mini_claude.types import ModelFamily, ModelSpec

_FAMILIES: Final[dict[ModelFamily, Callable[[str, Path], ChatModel]]] = {
    "causal_lm": CausalLM.from_folder,
    "dialogpt": DialoGPT,
}


def create_chat_model(spec: ModelSpec, folder: Path) -> ChatModel:
    """The renderer and tokenizer of the model in `folder`. Raises `ModelLoadError`."""
    return _FAMILIES[spec.family](spec.name, folder)
