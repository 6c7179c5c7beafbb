"""The llama.cpp engine: any GGUF file, on a CPU. Its threads are llama.cpp's own; ours asks for one step at a time."""

from pathlib import Path

from mini_claude.engine.llama_cpp_model import LlamaCppModel, WriteAdapter
from mini_claude.engine.threaded_engine import ThreadedEngine
from mini_claude.models.base_model import TextCodec
from mini_claude.types import LoadOptions


class LlamaCppEngine(ThreadedEngine):
    """See `LlamaCppModel` for what it runs."""

    def __init__(
        self,
        gguf_file: Path,
        codec: TextCodec,
        context_length: int,
        options: LoadOptions,
        write_adapter: WriteAdapter | None = None,
    ) -> None:
        """`write_adapter` makes a GGUF file of PEFT's folder. Raises `ModelLoadError`."""

        def make_model() -> LlamaCppModel:
            return LlamaCppModel(gguf_file, codec.vocab_size, options, write_adapter)

        super().__init__(make_model, codec, context_length, options)
