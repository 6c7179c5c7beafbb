"""A Hugging Face model with everything that a step of it needs, all of it in torch."""

from pathlib import Path

from transformers import PreTrainedModel

from mini_claude.engine.adapter_weights import AdapterWeights, read_adapter
from mini_claude.engine.kv_cache import CacheStorage
from mini_claude.engine.lora import AdapterLayers
from mini_claude.engine.model_preparation import prepare_model
from mini_claude.engine.model_runner import Part, Runner
from mini_claude.engine.sampler import NUM_CANDIDATES, Sampler
from mini_claude.engine.scheduler import ScheduledChunk
from mini_claude.engine.sequence import SampledToken
from mini_claude.errors import InternalError
from mini_claude.types import AdapterRef


class TorchModel:
    """See `StepModel` for the contract of its methods."""

    def __init__(self, model: PreTrainedModel, vocab_size: int, runner: Runner) -> None:
        """Takes the model over: its layers are replaced. Raises `ModelLoadError` where this engine cannot run it.

        Tokens from `vocab_size` on are padding of the LM head, and never chosen. The runner is of this model.
        """
        self.layers = prepare_model(model, runner)  # that adapters may change, by name
        self.model = model
        self._vocab_size = vocab_size
        self._adapters = AdapterLayers(model, runner.adapter_rows)
        self._runner = runner
        self._sampler = Sampler(NUM_CANDIDATES if model.device.type == "cpu" else None)

    @property
    def storage(self) -> CacheStorage:
        """See `StepModel.storage`."""
        return self._runner.storage

    def step(self, chunks: list[ScheduledChunk]) -> list[SampledToken | InternalError]:
        """See `StepModel.step`."""
        logits = self._runner.read([_part(chunk) for chunk in chunks])[:, : self._vocab_size]
        return self._sampler.sample(logits, [chunk.sequence for chunk in chunks if chunk.completes])

    def read_adapter(self, folder: Path) -> AdapterWeights:
        """See `StepModel.read_adapter`."""
        return read_adapter(folder, self.layers)

    def add_adapter(self, adapter: AdapterRef, weights: AdapterWeights) -> None:
        """See `StepModel.add_adapter`."""
        self._adapters.add(adapter, weights)
        self._runner.model_changed()

    def remove_adapter(self, adapter: AdapterRef) -> None:
        """See `StepModel.remove_adapter`."""
        self._adapters.remove(adapter)
        self._runner.model_changed()

    def close(self) -> None:
        """See `StepModel.close`."""


def _part(chunk: ScheduledChunk) -> Part:
    sequence = chunk.sequence
    assert sequence.entry is not None
    return Part(sequence.entry, chunk.start, chunk.token_ids, chunk.completes, sequence.request.adapter)
