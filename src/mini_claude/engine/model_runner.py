"""Runs one step through the model: chunks of sequences in, logits of those that are read to their end out."""

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from mini_claude.engine.attention import AttentionBatch, Span
from mini_claude.engine.kv_storage import KVStorage
from mini_claude.engine.scheduler import ScheduledChunk


class ModelRunner:
    """A prepared model (see model_preparation.py) that reads and writes `storage` instead of a cache of its own."""

    def __init__(self, model: PreTrainedModel, storage: KVStorage) -> None:
        self._model = model
        self._storage = storage

    @torch.inference_mode()
    def run(self, chunks: Sequence[ScheduledChunk]) -> torch.Tensor:
        """Read all chunks. Returns float32 logits [chunks that complete, vocabulary], in their order."""
        token_ids: list[int] = []
        positions: list[int] = []
        spans: list[Span] = []
        rows: list[int] = []
        for chunk in chunks:
            assert chunk.sequence.entry is not None
            buffer = self._storage.buffer(chunk.sequence.entry)
            spans.append(Span(len(token_ids), chunk.num_tokens, chunk.start, buffer))
            token_ids += chunk.token_ids
            positions += range(chunk.start, chunk.start + chunk.num_tokens)
            if chunk.completes:
                rows.append(len(token_ids) - 1)
        # Not every kernel takes a matrix without rows, so a step that only reads computes one row for nothing.
        return forward(self._model, token_ids, positions, tuple(spans), rows or [0])[: len(rows)]


def forward(
    model: PreTrainedModel, token_ids: list[int], positions: list[int], spans: tuple[Span, ...], rows: list[int]
) -> torch.Tensor:
    """Logits [rows, vocabulary] of one flat row of tokens.

    The LM head is the largest matmul of a small model: it sees only the rows that will be sampled.
    """
    output = model(
        input_ids=torch.tensor([token_ids], device=model.device),
        position_ids=torch.tensor([positions], device=model.device),
        use_cache=False,
        logits_to_keep=torch.tensor(rows, device=model.device),
        attention_batch=AttentionBatch(spans),
    )
    logits: torch.Tensor = output.logits[0].float()
    return logits
