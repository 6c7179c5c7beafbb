"""Runs a step over keys and values in a pool, as a GPU wants it: steps that only decode have shapes that recur."""

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from mini_claude.engine.decode_step import DecodeStep
from mini_claude.engine.kv_cache import CacheEntry
from mini_claude.engine.kv_pool import KVPool, Run
from mini_claude.engine.lora import StepRows
from mini_claude.engine.model_runner import Part, forward
from mini_claude.engine.pool_attention import PoolAttention, PoolSpan, choose_kernel, pool_step
from mini_claude.engine.transfers import to_device
from mini_claude.types import LoadOptions


class PoolRunner:
    """See `Runner`."""

    def __init__(self, model: PreTrainedModel, options: LoadOptions) -> None:
        self.storage = KVPool(options.kv_cache_tokens, model.device)
        self.adapter_rows = StepRows(model.device)
        self._model = model
        self._kernel = choose_kernel(model.device, model.dtype)
        self._decode = DecodeStep(model, self.storage, self._kernel, self.adapter_rows)

    @torch.inference_mode()
    def read(self, parts: Sequence[Part]) -> torch.Tensor:
        """See `Runner`."""
        runs = [self.storage.reserve(part.entry) for part in parts]  # all of them, before any place is taken for final
        order = sorted(range(len(parts)), key=lambda number: runs[number].start)
        in_order = [parts[number] for number in order]
        runs = [runs[number] for number in order]
        if all(part.is_wanted and len(part.token_ids) == 1 for part in parts):
            logits = self._decode.run(in_order, runs)
            wanted = order
        else:
            logits = self._read_any(in_order, runs)
            wanted = [number for number in order if parts[number].is_wanted]
        if wanted == sorted(wanted):
            return logits
        rows = sorted(range(len(wanted)), key=lambda row: wanted[row])
        return logits[to_device(rows, torch.int64, logits.device)]

    def holds(self, entry: CacheEntry) -> bool:
        """See `Runner`."""
        return self.storage.holds(entry)

    def model_changed(self) -> None:
        """See `Runner`."""
        self._decode.forget()

    def _read_any(self, parts: Sequence[Part], runs: Sequence[Run]) -> torch.Tensor:
        """Logits of the wanted parts, in this order."""
        spans: list[PoolSpan] = []
        num_tokens = 0
        for part, run in zip(parts, runs, strict=True):
            spans.append(PoolSpan(num_tokens, len(part.token_ids), part.start, run))
            num_tokens += len(part.token_ids)
        device = self._model.device
        token_ids = [token_id for part in parts for token_id in part.token_ids]
        positions = [part.start + number for part in parts for number in range(len(part.token_ids))]
        last_tokens = [
            span.start + span.num_tokens - 1 for span, part in zip(spans, parts, strict=True) if part.is_wanted
        ]
        self.adapter_rows.assign([(part.adapter, len(part.token_ids)) for part in parts])
        logits = forward(
            self._model,
            to_device(token_ids, torch.int64, device),
            to_device(positions, torch.int64, device),
            PoolAttention(self.storage, self._kernel, pool_step(spans, device), spans),
            to_device(last_tokens or [0], torch.int64, device),
        )
        return logits[: len(last_tokens)]
