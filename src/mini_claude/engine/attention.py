"""Attention over the engine's own KV cache, plugged into Hugging Face models.

A step's tokens, of many sequences, go through the model as one row: [1, tokens]. All layers but attention treat
tokens one by one, so the mixture does not matter to them. Here, in attention, the row falls apart again: each
sequence's keys and values are appended to its row of the cache and its queries see that row alone. Sequences that
decode and lie in neighbouring rows are read by one call, for calls cost more than the keys of a short text.

`transformers` calls the function registered under `NAME` with what its own implementations get. It makes no masks
for names that are not in its mask registry, and passes `attention_batch` on from the model's keyword arguments.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Protocol

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from mini_claude.engine.kv_storage import Row

NAME = "mini_claude"
_ALL = slice(None)
_Place = tuple[torch.Tensor, slice, torch.Tensor] | tuple[int, slice, int]


@dataclass(frozen=True, slots=True)
class ScoreRule:
    """What a layer makes of q k^T before the softmax.

    `softcap` (Gemma 2) squashes the scores by tanh; `sinks` (gpt-oss) are attention sinks, [heads].
    """

    scaling: float | None
    window: int | None
    softcap: float | None
    sinks: torch.Tensor | None

    @property
    def by_hand(self) -> bool:
        """Whether it needs more than a kernel offers."""
        return self.softcap is not None or self.sinks is not None


class StepAttention(Protocol):
    """The attention of one step, in every layer."""

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, rule: ScoreRule
    ) -> torch.Tensor:
        """Append key and value, [1, kv_heads, tokens, head_dim], to the cache and let the queries attend to it.

        query is [1, heads, tokens, head_dim], the result [1, tokens, heads, head_dim].
        """
        ...


@dataclass(frozen=True, slots=True)
class Span:
    """`num_tokens` consecutive tokens of the step that belong to one sequence, after `num_past` cached ones."""

    start: int
    num_tokens: int
    num_past: int
    row: Row

    @property
    def decodes(self) -> bool:
        """Whether it reads one token. A text's very first token counts as prefill: its row may not be in memory yet."""
        return self.num_tokens == 1 and self.num_past > 0


class DecodeRun:
    """Spans that decode, next to each other in the step and, in the same order, in the rows of one arena."""

    def __init__(self, spans: Sequence[Span], device: torch.device) -> None:
        self._arena = spans[0].row.arena
        self._tokens = slice(spans[0].start, spans[0].start + len(spans))
        self._rows = slice(spans[0].row.index, spans[0].row.index + len(spans))
        nums_past = [span.num_past for span in spans]
        self._shortest, self._longest = min(nums_past), max(nums_past)
        self._positions = torch.tensor(nums_past, device=device)
        self._place: _Place = (torch.arange(self._rows.start, self._rows.stop, device=device), _ALL, self._positions)
        if len(spans) == 1:  # one place needs no index tensors, which take longer
            self._place = (self._rows.start, _ALL, self._longest)
        self._masks: dict[tuple[int | None, torch.dtype], torch.Tensor] = {}
        for span in spans:
            if span.num_past < self._longest:
                self._arena.clear(span.row.index, span.num_past, self._longest + 1)

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float | None,
        window: int | None,
    ) -> torch.Tensor:
        """Append the run's part of key and value; what its queries see, [1, run, heads, head_dim].

        The query heads that share a kv head are laid out as its query rows: keys are read once and never repeated.
        """
        keys, values = self._arena.layer(layer, key[0], value[0])
        keys[self._place] = key[0, :, self._tokens].transpose(0, 1)
        values[self._place] = value[0, :, self._tokens].transpose(0, 1)
        first = 0 if window is None else max(0, self._shortest + 1 - window)  # nobody looks further back
        queries = query[0, :, self._tokens].view(keys.shape[1], -1, len(self._positions), query.shape[3])
        output = scaled_dot_product_attention(
            queries.permute(2, 0, 1, 3),
            keys[self._rows, :, first : self._longest + 1],
            values[self._rows, :, first : self._longest + 1],
            self._mask(first, window, query.dtype),
            scale=scaling,
        )
        return output.reshape(1, len(output), query.shape[1], values.shape[3])

    def _mask(self, first: int, window: int | None, dtype: torch.dtype) -> torch.Tensor | None:
        """[run, 1, 1, keys from `first`], 0 where a query may look and -inf elsewhere; None when all may look at all.

        Not as booleans: the kernel would turn them into this in every layer.
        """
        if self._shortest == self._longest:
            return None
        key = (window, dtype)
        if key not in self._masks:
            past = self._positions[:, None]
            key_positions = torch.arange(first, self._longest + 1, device=past.device)
            hidden = key_positions > past
            if window is not None:
                hidden |= key_positions <= past - window
            mask = torch.zeros(hidden.shape, dtype=dtype, device=past.device).masked_fill(hidden, float("-inf"))
            self._masks[key] = mask[:, None, None]
        return self._masks[key]


class AttentionBatch:
    """The spans of one step in the order of its tokens; masks are made once and shared by all layers."""

    def __init__(self, spans: Sequence[Span], device: torch.device) -> None:
        self.spans = tuple(spans)
        self.parts = tuple(_parts(spans, device))
        self._masks: dict[tuple[int, int, int | None], torch.Tensor] = {}

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, rule: ScoreRule
    ) -> torch.Tensor:
        """See `StepAttention`."""
        outputs = []
        for part in self.spans if rule.by_hand else self.parts:
            if isinstance(part, DecodeRun):
                outputs.append(part.attend(layer, query, key, value, rule.scaling, rule.window))
                continue
            new = slice(part.start, part.start + part.num_tokens)
            keys, values = part.row.append(layer, key[0, :, new], value[0, :, new], part.num_past)
            # The kernel's own causal mask is faster than a tensor, but knows neither past nor window.
            causal = part.num_past == 0 and (rule.window is None or part.num_tokens <= rule.window)
            mask = None if causal and not rule.by_hand else self.mask(part, rule.window, query.device)
            if mask is not None and rule.by_hand:
                output = attend_by_hand(query[:, :, new], keys[None], values[None], mask, rule)
            else:
                output = scaled_dot_product_attention(
                    query[:, :, new], keys[None], values[None], mask, 0.0, causal, scale=rule.scaling, enable_gqa=True
                ).transpose(1, 2)
            outputs.append(output)
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)

    def mask(self, span: Span, window: int | None, device: torch.device) -> torch.Tensor:
        """[new, past + new], True where a query may look: not ahead, and not back further than the window."""
        key = (span.num_past, span.num_tokens, window)
        if key not in self._masks:
            num_keys = span.num_past + span.num_tokens
            mask = torch.ones(span.num_tokens, num_keys, dtype=torch.bool, device=device).tril(span.num_past)
            self._masks[key] = mask if window is None else mask.triu(span.num_past - window + 1)
        return self._masks[key]


def _parts(spans: Sequence[Span], device: torch.device) -> Iterator[Span | DecodeRun]:
    """The spans in their order, those that can be read together as runs."""
    # Along a run of neighbours, the row's index and the token's place in the step go up together.
    for is_run, group in groupby(spans, lambda span: span.decodes and (span.row.arena, span.row.index - span.start)):
        if is_run:
            yield DecodeRun(tuple(group), device)
        else:
            yield from group


def register() -> None:
    """Make `model.set_attn_implementation(NAME)` possible."""
    AttentionInterface.register(NAME, attention_forward)


def attention_forward(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    _attention_mask: torch.Tensor | None,
    *,
    attention_batch: StepAttention,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **_unused: object,
) -> tuple[torch.Tensor, None]:
    """What `transformers` calls; see `StepAttention.attend`."""
    layer: int = module.layer_idx  # type: ignore[assignment]
    rule = ScoreRule(scaling, sliding_window, softcap, s_aux)
    return attention_batch.attend(layer, query, key, value, rule), None


def attend_by_hand(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, rule: ScoreRule
) -> torch.Tensor:
    """softmax(cap(q k^T * scaling)) v, written out for the models whose scores need more than a kernel offers.

    query is [texts, heads, tokens, head_dim], keys and values [texts, kv_heads, keys, head_dim], the mask is True where
    a query may look; the result is [texts, tokens, heads, head_dim].
    """
    num_texts, num_heads, num_tokens, head_dim = query.shape
    group = num_heads // keys.shape[1]
    keys, values = keys.repeat_interleave(group, dim=1), values.repeat_interleave(group, dim=1)
    scores = query @ keys.transpose(2, 3) * (head_dim**-0.5 if rule.scaling is None else rule.scaling)
    if rule.softcap is not None:
        scores = rule.softcap * torch.tanh(scores / rule.softcap)
    scores = scores.masked_fill(~mask, float("-inf"))
    if rule.sinks is not None:  # a score that takes probability and gives no value
        scores = torch.cat((scores, rule.sinks.view(1, -1, 1, 1).expand(num_texts, -1, num_tokens, 1)), dim=3)
    weights = torch.softmax(scores, dim=3, dtype=torch.float32).to(query.dtype)[..., : keys.shape[2]]
    return (weights @ values).transpose(1, 2)
