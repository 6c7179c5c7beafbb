"""Runs one step through the model: chunks of sequences in, logits of those that are read to their end out."""

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from mini_claude.engine.attention import AttentionBatch, Span
from mini_claude.engine.kv_storage import KVStorage, Row
from mini_claude.engine.lora import StepRows
from mini_claude.engine.scheduler import ScheduledChunk
from mini_claude.types import AdapterRef


class ModelRunner:
    """A prepared model (see model_preparation.py) that reads and writes `storage` instead of a cache of its own."""

    def __init__(self, model: PreTrainedModel, storage: KVStorage, adapter_rows: StepRows) -> None:
        self._model = model
        self._storage = storage
        self._adapter_rows = adapter_rows

    @torch.inference_mode()
    def run(self, chunks: Sequence[ScheduledChunk]) -> torch.Tensor:
        """Read all chunks. Returns float32 logits [chunks that complete, vocabulary], in their order."""
        token_ids: list[int] = []
        positions: list[int] = []
        spans: list[Span] = []
        owners: list[tuple[AdapterRef | None, int]] = []
        last_tokens: dict[int, int] = {}
        rows = [self._storage.reserve(chunk.sequence.entry) for chunk in chunks if chunk.sequence.entry is not None]
        for number in _by_place(rows):
            chunk = chunks[number]
            spans.append(Span(len(token_ids), chunk.num_tokens, chunk.start, rows[number]))
            token_ids += chunk.token_ids
            positions += range(chunk.start, chunk.start + chunk.num_tokens)
            owners.append((chunk.sequence.request.adapter, chunk.num_tokens))
            last_tokens[number] = len(token_ids) - 1
        sampled = [last_tokens[number] for number, chunk in enumerate(chunks) if chunk.completes]
        self._adapter_rows.assign(owners)
        # Not every kernel takes a matrix without rows, so a step that only reads computes one row for nothing.
        return forward(self._model, token_ids, positions, spans, sampled or [0])[: len(sampled)]


def _by_place(rows: Sequence[Row]) -> list[int]:
    """The rows' numbers, sorted so that neighbours in memory become neighbours in the step: they are read together."""
    arenas = {arena: number for number, arena in enumerate(dict.fromkeys(row.arena for row in rows))}
    return sorted(range(len(rows)), key=lambda number: (arenas[rows[number].arena], rows[number].index))


def forward(
    model: PreTrainedModel, token_ids: list[int], positions: list[int], spans: Sequence[Span], rows: list[int]
) -> torch.Tensor:
    """Logits [rows, vocabulary] of one flat row of tokens.

    The LM head is the largest matmul of a small model: it sees only the rows that will be sampled.
    """
    output = model(
        input_ids=torch.tensor([token_ids], device=model.device),
        position_ids=torch.tensor([positions], device=model.device),
        use_cache=False,
        logits_to_keep=torch.tensor(rows, device=model.device),
        attention_batch=AttentionBatch(spans, model.device),
    )
    logits: torch.Tensor = output.logits[0].float()
    return logits
