"""Attention over the engine's own KV cache, plugged into Hugging Face models.

A step's tokens, of many sequences, go through the model as one row: [1, tokens]. All layers but attention treat
tokens one by one, so the mixture does not matter to them. Here, in attention, the row falls apart again: each
sequence's keys and values are appended to its buffer and its queries see that buffer alone.

`transformers` calls the function registered under `NAME` with what its own implementations get. It makes no masks
for names that are not in its mask registry, and passes `attention_batch` on from the model's keyword arguments.
"""

from dataclasses import dataclass, field

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from mini_claude.engine.kv_storage import KVBuffer

NAME = "mini_claude"


@dataclass(frozen=True, slots=True)
class Span:
    """`num_tokens` consecutive tokens of the row that belong to one sequence, after `num_past` cached ones."""

    start: int
    num_tokens: int
    num_past: int
    buffer: KVBuffer


@dataclass(frozen=True, slots=True)
class AttentionBatch:
    """The spans of one step in the order of the row; masks are made once and shared by all layers."""

    spans: tuple[Span, ...]
    _masks: dict[tuple[int, int, int | None], torch.Tensor] = field(default_factory=dict)

    def mask(self, span: Span, window: int | None, device: torch.device) -> torch.Tensor:
        """[new, past + new], True where a query may look: not ahead, and not back further than the window."""
        key = (span.num_past, span.num_tokens, window)
        if key not in self._masks:
            num_keys = span.num_past + span.num_tokens
            mask = torch.ones(span.num_tokens, num_keys, dtype=torch.bool, device=device).tril(span.num_past)
            self._masks[key] = mask if window is None else mask.triu(span.num_past - window + 1)
        return self._masks[key]


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
    attention_batch: AttentionBatch,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **_unused: object,
) -> tuple[torch.Tensor, None]:
    """Append key and value, [1, kv_heads, tokens, head_dim], to the buffers and let the queries attend to them.

    query is [1, heads, tokens, head_dim], the result [1, tokens, heads, head_dim]. `softcap` (Gemma 2) squashes the
    scores by tanh; `s_aux` (gpt-oss) are attention sinks, [heads].
    """
    layer: int = module.layer_idx  # type: ignore[assignment]
    outputs = []
    for span in attention_batch.spans:
        end = span.start + span.num_tokens
        keys, values = span.buffer.append(
            layer, key[0, :, span.start : end], value[0, :, span.start : end], span.num_past
        )
        queries = query[:, :, span.start : end]
        if softcap is not None or s_aux is not None:
            mask = attention_batch.mask(span, sliding_window, query.device)
            output = _attend_by_hand(queries, keys[None], values[None], mask, scaling, softcap, s_aux)
        elif span.num_tokens == 1:
            output = _attend_one(queries, keys[None], values[None], scaling, sliding_window)
        else:
            # The kernel's own causal mask is faster than a tensor, but knows neither past nor window.
            causal = span.num_past == 0 and (sliding_window is None or span.num_tokens <= sliding_window)
            chunk_mask = None if causal else attention_batch.mask(span, sliding_window, query.device)
            output = scaled_dot_product_attention(
                queries, keys[None], values[None], chunk_mask, is_causal=causal, scale=scaling, enable_gqa=True
            ).transpose(1, 2)
        outputs.append(output)
    return torch.cat(outputs, dim=1), None


def _attend_one(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scaling: float | None, window: int | None
) -> torch.Tensor:
    """Decode: one query [1, heads, 1, head_dim] sees every key in its window, so there is no mask.

    The query heads that share a kv head are laid out as its query rows: keys are read once and never repeated.
    """
    _, num_heads, _, head_dim = query.shape
    num_kv_heads, num_keys = keys.shape[1:3]
    if window is not None and num_keys > window:
        keys, values = keys[:, :, -window:], values[:, :, -window:]
    rows = query.reshape(1, num_kv_heads, num_heads // num_kv_heads, head_dim)
    output = scaled_dot_product_attention(rows, keys, values, scale=scaling)
    return output.reshape(1, 1, num_heads, values.shape[3])


def _attend_by_hand(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor,
    scaling: float | None,
    softcap: float | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """softmax(cap(q k^T * scaling)) v, written out for the models whose scores need more than a kernel offers."""
    _, num_heads, num_tokens, head_dim = query.shape
    group = num_heads // keys.shape[1]
    keys, values = keys.repeat_interleave(group, dim=1), values.repeat_interleave(group, dim=1)
    scores = query @ keys.transpose(2, 3) * (head_dim**-0.5 if scaling is None else scaling)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(~mask, float("-inf"))
    if sinks is not None:  # a score that takes probability and gives no value
        scores = torch.cat((scores, sinks.view(1, -1, 1, 1).expand(1, -1, num_tokens, 1)), dim=3)
    weights = torch.softmax(scores, dim=3, dtype=torch.float32).to(query.dtype)[..., : keys.shape[2]]
    return (weights @ values).transpose(1, 2)
