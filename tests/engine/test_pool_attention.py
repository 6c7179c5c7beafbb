"""Attention over the pool, next to the formula; the varlen kernel is played by what its documentation says."""

import pytest
import torch

from mini_claude.engine import pool_attention
from mini_claude.engine.attention import ScoreRule
from mini_claude.engine.kv_pool import KVPool, Run
from mini_claude.engine.pool_attention import Kernel, PoolAttention, PoolSpan, choose_kernel, pool_step

NUM_HEADS, NUM_KV_HEADS, HEAD_DIM = 6, 2, 8
CPU = torch.device("cpu")
LENGTHS = (20, 3, 33)
STARTS = (5, 40, 60)
WINDOWS = [None, 1, 5, 60]


def varlen_by_the_book(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seq_q: torch.Tensor,
    cu_seq_k: torch.Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float | None,
    window_size: tuple[int, int],
    enable_gqa: bool,
    seqused_k: torch.Tensor,
) -> torch.Tensor:
    """As torch 2.13 documents `varlen_attn`, one sequence after the other."""
    assert cu_seq_q.dtype == cu_seq_k.dtype == seqused_k.dtype == torch.int32
    assert all(tensor.is_contiguous() for tensor in (cu_seq_q, cu_seq_k, seqused_k))
    assert len(cu_seq_q) == len(cu_seq_k) == len(seqused_k) + 1
    assert enable_gqa
    assert query.stride(-1) == key.stride(-1) == 1
    assert (seqused_k <= cu_seq_k.diff()).all()  # each within its slot
    assert int(cu_seq_q.diff().max()) == max_q
    assert int(seqused_k.max()) <= max_k
    outputs = []
    for n, num_keys in enumerate(seqused_k.tolist()):
        queries = query[cu_seq_q[n] : cu_seq_q[n + 1]]
        start = int(cu_seq_k[n])
        # The last query is aligned to the last key.
        at = torch.arange(len(queries))[:, None] + num_keys - len(queries)
        distance = at - torch.arange(num_keys)
        left, right = window_size
        visible = (distance <= (left if left >= 0 else num_keys)) & (-distance <= (right if right >= 0 else num_keys))
        outputs.append(attention(queries, key[start:][:num_keys], value[start:][:num_keys], visible, scale))
    return torch.cat(outputs)


def attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, visible: torch.Tensor, scale: float | None = None
) -> torch.Tensor:
    """[tokens, heads, dim] each."""
    group = query.shape[1] // key.shape[1]
    key, value = (tensor.repeat_interleave(group, dim=1) for tensor in (key, value))
    scores = torch.einsum("qhd,khd->hqk", query, key) * (scale or query.shape[2] ** -0.5)
    weights = scores.masked_fill(~visible, float("-inf")).softmax(dim=-1)
    return torch.einsum("hqk,khd->qhd", weights, value)


@pytest.fixture(params=list(Kernel))
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Kernel:
    monkeypatch.setattr(pool_attention, "varlen_attn", varlen_by_the_book)
    kernel: Kernel = request.param
    return kernel


@pytest.fixture
def texts() -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Query, key and value of whole texts, [heads, tokens, dim] each."""
    torch.manual_seed(5)
    shapes = (NUM_HEADS, NUM_KV_HEADS, NUM_KV_HEADS)
    return [tuple(torch.randn(heads, length, HEAD_DIM) for heads in shapes) for length in LENGTHS]  # type: ignore[misc]


@pytest.mark.parametrize("window", WINDOWS)
def test_chunks_and_single_tokens_see_what_the_formula_says(
    kernel: Kernel, window: int | None, texts: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]
) -> None:
    pool = KVPool(100, CPU)
    for tensor in pool.layer(0, texts[0][1], texts[0][2]):
        tensor[:-1] = float("nan")  # what memory may hold before it is written
    runs = [Run(start, 34) for start in STARTS]
    rule = ScoreRule(None, window, None, None)
    read = [0, 0, 0]
    for upto in ((10, 1, 31), (19, 2, 32), (20, 3, 33)):
        spans, start = [], 0
        for past, end, run in zip(read, upto, runs, strict=True):
            spans.append(PoolSpan(start, end - past, past, run))
            start += end - past
        query, key, value = (
            torch.cat([text[index][:, past:end] for text, past, end in zip(texts, read, upto, strict=True)], dim=1)[
                None
            ]
            for index in range(3)
        )
        output = PoolAttention(pool, kernel, pool_step(spans, CPU), spans).attend(0, query, key, value, rule)
        for span, text, past, end in zip(spans, texts, read, upto, strict=True):
            distance = torch.arange(past, end)[:, None] - torch.arange(end)
            visible = (distance >= 0) & (distance < (window or 1000))
            expected = attention(
                text[0][:, past:end].transpose(0, 1),
                text[1][:, :end].transpose(0, 1),
                text[2][:, :end].transpose(0, 1),
                visible,
            )
            torch.testing.assert_close(output[0, span.start : span.start + span.num_tokens], expected)
        read = list(upto)


def test_a_cpu_and_thirty_two_bits_have_no_varlen_kernel() -> None:
    assert choose_kernel(CPU, torch.bfloat16) is Kernel.SDPA
    assert choose_kernel(torch.device("cuda"), torch.float32) is Kernel.SDPA


def test_the_varlen_kernel_is_taken_only_where_it_agrees(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_attention, "varlen_attn", varlen_by_the_book)
    assert pool_attention._kernels_agree(CPU, torch.float32)
    monkeypatch.setattr(pool_attention, "varlen_attn", lambda *a, **k: varlen_by_the_book(*a, **k) * 1.1)
    assert not pool_attention._kernels_agree(CPU, torch.float32)
