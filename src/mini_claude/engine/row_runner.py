"""Runs a step on a CPU, over keys and values in rows."""

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from mini_claude.engine.attention import AttentionBatch, Span
from mini_claude.engine.kv_cache import CacheEntry
from mini_claude.engine.kv_storage import KVStorage, Row
from mini_claude.engine.lora import StepRows
from mini_claude.engine.model_runner import Part, forward
from mini_claude.types import AdapterRef


class RowRunner:
    """See `Runner`."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.storage = KVStorage()
        self.adapter_rows = StepRows(model.device)
        self._model = model

    @torch.inference_mode()
    def read(self, parts: Sequence[Part]) -> torch.Tensor:
        """See `Runner`."""
        token_ids: list[int] = []
        positions: list[int] = []
        spans: list[Span] = []
        owners: list[tuple[AdapterRef | None, int]] = []
        last_tokens: dict[int, int] = {}
        rows = [self.storage.reserve(part.entry) for part in parts]
        for number in _by_place(rows):
            part, num_tokens = parts[number], len(parts[number].token_ids)
            spans.append(Span(len(token_ids), num_tokens, part.start, rows[number]))
            token_ids += part.token_ids
            positions += range(part.start, part.start + num_tokens)
            owners.append((part.adapter, num_tokens))
            last_tokens[number] = len(token_ids) - 1
        sampled = [last_tokens[number] for number, part in enumerate(parts) if part.is_wanted]
        self.adapter_rows.assign(owners)
        # Not every kernel takes a matrix without rows, so a step that only reads computes one row for nothing.
        wanted = torch.tensor(sampled or [0])
        batch = AttentionBatch(spans, self._model.device)
        logits = forward(self._model, torch.tensor(token_ids), torch.tensor(positions), batch, wanted)
        return logits[: len(sampled)]

    def holds(self, entry: CacheEntry) -> bool:
        """See `Runner`."""
        return bool(self.storage.reserve(entry).arena.layers)

    def model_changed(self) -> None:
        """See `Runner`. Nothing is recorded."""


def _by_place(rows: Sequence[Row]) -> list[int]:
    """The rows' numbers, sorted so that neighbours in memory become neighbours in the step: they are read together."""
    arenas = {arena: number for number, arena in enumerate(dict.fromkeys(row.arena for row in rows))}
    return sorted(range(len(rows)), key=lambda number: (arenas[rows[number].arena], rows[number].index))
