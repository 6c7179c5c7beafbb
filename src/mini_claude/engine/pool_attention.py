"""Attention over the pool of a GPU's KV cache: torch's varlen kernel where it works, else plain SDPA.

All that a step needs to know is in tensors on the device. So the attention of a step in which every sequence reads one
token can be captured once and replayed with other numbers in the same tensors. The SDPA way gathers the keys of
such a step into one tensor, which costs three times the memory traffic; it runs on any device, in any type.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto

import structlog
import torch
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention

from mini_claude.engine.attention import ScoreRule, attend_by_hand
from mini_claude.engine.kv_pool import KVPool, Run
from mini_claude.engine.transfers import to_device

log = structlog.get_logger(__name__)

_LARGEST_HEAD = 256  # of FlashAttention 2, which also wants a multiple of 8
_TOLERANCE = 2e-2  # between the two ways in 16 bits


class Kernel(Enum):
    """How attention is computed."""

    VARLEN = auto()
    SDPA = auto()


@dataclass(frozen=True, slots=True)
class PoolSpan:
    """`num_tokens` consecutive tokens of the step, from `start`, of one sequence that has `num_past` cached ones."""

    start: int
    num_tokens: int
    num_past: int
    run: Run


@dataclass(frozen=True, slots=True)
class PoolStep:
    """A step's places in the pool, as tensors on the device. Sequences are in the order of their runs.

    `places`, [tokens], is where each token's keys and values go. For each sequence, `query_starts` (int32,
    [sequences + 1]) is where its tokens begin in the step, `run_starts` (the same) where its run begins, and
    `num_keys` (int32, [sequences]) how many tokens it then has. `longest` is no less than the largest of them.
    """

    places: torch.Tensor
    query_starts: torch.Tensor
    run_starts: torch.Tensor
    num_keys: torch.Tensor
    most_tokens: int
    longest: int


class PoolAttention:
    """See `StepAttention`. `spans` are not needed where every sequence reads one token."""

    def __init__(self, pool: KVPool, kernel: Kernel, step: PoolStep, spans: Sequence[PoolSpan] = ()) -> None:
        self._pool = pool
        self._kernel = kernel
        self._step = step
        self._spans = spans

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, rule: ScoreRule
    ) -> torch.Tensor:
        """See `StepAttention`."""
        keys, values = self._pool.layer(layer, key[0], value[0])
        keys[self._step.places] = key[0].transpose(0, 1)
        values[self._step.places] = value[0].transpose(0, 1)
        if self._kernel is Kernel.VARLEN and not rule.by_hand and _suits_varlen(keys, values):
            return self._by_varlen(query, keys, values, rule)
        if self._step.most_tokens == 1:
            return self._decode(query, keys, values, rule)
        outputs = [self._read(span, query, keys, values, rule) for span in self._spans]
        return torch.cat(outputs, dim=1)

    def _by_varlen(
        self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, rule: ScoreRule
    ) -> torch.Tensor:
        step = self._step
        # One query sees all keys there are: said without a causal mask, this lets the kernel split a long text.
        window = (-1, -1) if step.most_tokens == 1 else (-1, 0)
        output = varlen_attn(
            query[0].transpose(0, 1),
            keys,
            values,
            step.query_starts,
            step.run_starts,
            step.most_tokens,
            step.longest,
            scale=rule.scaling,
            window_size=window if rule.window is None else (rule.window - 1, 0),
            enable_gqa=True,
            seqused_k=step.num_keys,
        )
        assert isinstance(output, torch.Tensor)
        return output[None]

    def _decode(self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, rule: ScoreRule) -> torch.Tensor:
        """One token of each sequence, their keys and values gathered as [sequences, kv_heads, longest, head_dim]."""
        offsets = torch.arange(self._step.longest, device=query.device)
        num_keys = self._step.num_keys[:, None]
        visible = offsets < num_keys
        if rule.window is not None:
            visible &= offsets >= num_keys - rule.window
        places = torch.where(visible, self._step.run_starts[:-1, None] + offsets, self._pool.padding_place)
        own_keys, own_values = keys[places].transpose(1, 2), values[places].transpose(1, 2)
        queries, mask = query[0].transpose(0, 1), visible[:, None, None]
        if rule.by_hand:
            return attend_by_hand(queries[:, :, None], own_keys, own_values, mask, rule).transpose(0, 1)
        # The heads that share keys as rows of one query: with a mask, no kernel for GPUs takes them grouped.
        grouped = queries.view(len(queries), keys.shape[1], -1, query.shape[3])
        output = scaled_dot_product_attention(grouped, own_keys, own_values, mask, scale=rule.scaling)
        return output.reshape(1, len(queries), query.shape[1], values.shape[2])

    def _read(
        self, span: PoolSpan, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, rule: ScoreRule
    ) -> torch.Tensor:
        """The tokens of one sequence; its keys and values are where they are."""
        num_keys = span.num_past + span.num_tokens
        own = slice(span.run.start, span.run.start + num_keys)
        own_keys, own_values = keys[None, own].transpose(1, 2), values[None, own].transpose(1, 2)
        queries = query[:, :, span.start : span.start + span.num_tokens]
        mask = torch.ones(span.num_tokens, num_keys, dtype=torch.bool, device=query.device).tril(span.num_past)
        if rule.window is not None:
            mask = mask.triu(span.num_past - rule.window + 1)
        if rule.by_hand:
            return attend_by_hand(queries, own_keys, own_values, mask, rule)
        output = scaled_dot_product_attention(queries, own_keys, own_values, mask, scale=rule.scaling, enable_gqa=True)
        return output.transpose(1, 2)


def _suits_varlen(keys: torch.Tensor, values: torch.Tensor) -> bool:
    head_dim = keys.shape[2]
    return head_dim == values.shape[2] and head_dim % 8 == 0 and head_dim <= _LARGEST_HEAD


def choose_kernel(device: torch.device, dtype: torch.dtype) -> Kernel:
    """The varlen kernel where it runs and agrees with SDPA. It needs an NVIDIA GPU from Ampere on, and 16 bits."""
    if device.type != "cuda" or dtype not in (torch.float16, torch.bfloat16):
        return Kernel.SDPA
    try:
        agrees = _kernels_agree(device, dtype)
    except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
        log.warning("varlen_attention_unavailable", error=str(error))
        return Kernel.SDPA
    if not agrees:
        log.warning("varlen_attention_unavailable", error="it disagrees with SDPA")
    return Kernel.VARLEN if agrees else Kernel.SDPA


@torch.inference_mode()
def _kernels_agree(device: torch.device, dtype: torch.dtype) -> bool:
    """Two sequences in slots with room to spare: chunks with and without a past, then a token each."""
    pool = KVPool(128, device)
    runs, read = (Run(3, 70), Run(90, 40)), [0, 0]
    generator = torch.Generator().manual_seed(0)
    for sizes in ((33, 20), (17, 1), (1, 1)):
        spans = [PoolSpan(sum(sizes[:n]), sizes[n], read[n], runs[n]) for n in range(2)]
        step = pool_step(spans, device)
        shapes = ((4, sum(sizes)), (2, sum(sizes)), (2, sum(sizes)))
        query, key, value = (torch.randn(1, *s, 64, generator=generator).to(device, dtype) for s in shapes)
        outputs = [
            PoolAttention(pool, kernel, step, spans).attend(0, query, key, value, ScoreRule(None, window, None, None))
            for window in (None, 7)
            for kernel in Kernel
        ]
        for one, other in zip(outputs[::2], outputs[1::2], strict=True):
            if not torch.allclose(one, other, rtol=_TOLERANCE, atol=_TOLERANCE):
                return False
        read = [past + size for past, size in zip(read, sizes, strict=True)]
    return True


def pool_step(spans: Sequence[PoolSpan], device: torch.device) -> PoolStep:
    """For any spans, in the order of their runs."""
    places = [
        place
        for span in spans
        for place in range(span.run.start + span.num_past, span.run.start + span.num_past + span.num_tokens)
    ]
    num_keys = [span.num_past + span.num_tokens for span in spans]
    return PoolStep(
        to_device(places, torch.int64, device),
        to_device([*(span.start for span in spans), len(places)], torch.int32, device),
        to_device([*(span.run.start for span in spans), spans[-1].run.end], torch.int32, device),
        to_device(num_keys, torch.int32, device),
        max(span.num_tokens for span in spans),
        max(num_keys),
    )
