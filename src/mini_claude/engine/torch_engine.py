"""The torch engine: any Hugging Face causal LM, on a CPU or a GPU.

All of torch's parallel work happens in the engine's thread, preparation of the model included: OpenMP keeps a pool of
workers for each thread that ever used it, and two pools on the same cores cost a third of the speed.
"""

import torch
from transformers import PreTrainedModel

from mini_claude.engine.pool_runner import PoolRunner
from mini_claude.engine.row_runner import RowRunner
from mini_claude.engine.threaded_engine import ThreadedEngine
from mini_claude.engine.torch_model import TorchModel
from mini_claude.models.base_model import TextCodec
from mini_claude.types import LoadOptions


class TorchEngine(ThreadedEngine):
    """Any model that `prepare_model` accepts."""

    def __init__(self, model: PreTrainedModel, codec: TextCodec, context_length: int, options: LoadOptions) -> None:
        """Takes the model over: its layers are replaced. Raises `ModelLoadError` where this engine cannot run it."""

        def make_model() -> TorchModel:
            if options.num_threads:  # otherwise torch's default, the physical cores
                torch.set_num_threads(options.num_threads)
            if model.device.type == "cpu":
                return TorchModel(model, codec.vocab_size, RowRunner(model))
            torch.cuda.set_device(model.device)  # this thread's: streams, events and graphs are of the current device
            return TorchModel(model, codec.vocab_size, PoolRunner(model, options))

        super().__init__(make_model, codec, context_length, options)
