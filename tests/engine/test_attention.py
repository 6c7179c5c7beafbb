"""Attention over the cache, next to the formula: a step may mix prefill and decoding, rows may lie anywhere."""

import pytest
import torch

from mini_claude.engine.attention import AttentionBatch, DecodeRun, Span, attention_forward
from mini_claude.engine.kv_cache import CacheEntry
from mini_claude.engine.kv_storage import KVStorage, Row

NUM_HEADS, NUM_KV_HEADS, KEY_DIM, VALUE_DIM = 6, 2, 4, 5
CPU = torch.device("cpu")
LENGTHS = (20, 3, 9, 33, 9, 1, 12)
WINDOWS = [None, 1, 5, 15, 60]  # shorter than most texts, than a few, than none

Text = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # query, key, value: each [heads, tokens, dim]


class Layer(torch.nn.Module):
    layer_idx = 0


def random_text(num_tokens: int) -> Text:
    return (
        torch.randn(NUM_HEADS, num_tokens, KEY_DIM),
        torch.randn(NUM_KV_HEADS, num_tokens, KEY_DIM),
        torch.randn(NUM_KV_HEADS, num_tokens, VALUE_DIM),
    )


def by_formula(text: Text, window: int | None) -> torch.Tensor:
    """[tokens, heads, VALUE_DIM]."""
    query, key, value = text
    key, value = (tensor.repeat_interleave(NUM_HEADS // NUM_KV_HEADS, dim=0) for tensor in (key, value))
    distance = torch.arange(query.shape[1])[:, None] - torch.arange(query.shape[1])
    visible = (distance >= 0) & (distance < (window or 1000))
    scores = (query @ key.transpose(1, 2) * KEY_DIM**-0.5).masked_fill(~visible, float("-inf"))
    output: torch.Tensor = scores.softmax(dim=-1) @ value
    return output.transpose(0, 1)


def rows_full_of_nan(num_rows: int) -> list[Row]:
    """What memory may hold before it is written."""
    storage = KVStorage()
    rows = [storage.reserve(CacheEntry(list(range(40)))) for _ in range(num_rows)]
    _, key, value = random_text(1)
    for tensor in rows[0].arena.layer(0, key, value):
        tensor.fill_(float("nan"))
    return rows


def step(parts: list[tuple[Text, Row, int, int]], window: int | None) -> tuple[AttentionBatch, list[torch.Tensor]]:
    """Read tokens `start` to `end` of each text; for each, [tokens, heads, VALUE_DIM]."""
    spans: list[Span] = []
    num_tokens = 0
    for _, row, start, end in parts:
        spans.append(Span(num_tokens, end - start, start, row))
        num_tokens += end - start
    query, key, value = (
        torch.cat([text[index][:, start:end] for text, _, start, end in parts], dim=1)[None] for index in range(3)
    )
    batch = AttentionBatch(spans, CPU)
    output, _ = attention_forward(Layer(), query, key, value, None, attention_batch=batch, sliding_window=window)
    return batch, list(torch.split(output[0], [span.num_tokens for span in spans]))


def num_runs(batch: AttentionBatch) -> int:
    return sum(isinstance(part, DecodeRun) for part in batch.parts)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(5)


@pytest.mark.parametrize("window", WINDOWS)
def test_neighbours_decode_in_one_run_whatever_their_lengths(window: int | None) -> None:
    texts = [random_text(length + 2) for length in LENGTHS]
    places = list(zip(texts, rows_full_of_nan(len(texts)), LENGTHS, strict=True))
    step([(text, row, 0, length) for text, row, length in places], window)
    for number in range(2):
        batch, outputs = step([(text, row, n + number, n + number + 1) for text, row, n in places], window)
        assert num_runs(batch) == len(batch.parts) == 1
        for (text, _, length), output in zip(places, outputs, strict=True):
            torch.testing.assert_close(output[0], by_formula(text, window)[length + number])


@pytest.mark.parametrize("window", WINDOWS)
def test_rows_with_gaps_decode_beside_a_prefill_in_the_gap(window: int | None) -> None:
    texts = [random_text(length + 1) for length in LENGTHS]
    places = list(zip(texts, rows_full_of_nan(len(texts)), LENGTHS, strict=True))
    step([(text, row, 0, length) for text, row, length in places if length != 12], window)
    # Rows 0 and 1 decode, 2 rests, 3 to 5 decode, and 6 is only now read.
    parts = [(text, row, length, length + 1) for text, row, length in places]
    parts[6] = (*places[6][:2], 0, 13)
    del parts[2]
    batch, outputs = step(parts, window)
    assert (num_runs(batch), len(batch.parts)) == (2, 3)
    for (text, _, start, end), output in zip(parts, outputs, strict=True):
        torch.testing.assert_close(output, by_formula(text, window)[start:end])


def test_layers_of_one_step_may_have_different_windows() -> None:
    texts = [random_text(length) for length in (20, 9)]
    rows = rows_full_of_nan(2)
    step([(texts[0], rows[0], 0, 19), (texts[1], rows[1], 0, 8)], None)
    batch = AttentionBatch([Span(0, 1, 19, rows[0]), Span(1, 1, 8, rows[1])], CPU)
    query, key, value = (torch.stack([text[index][:, -1] for text in texts], dim=1)[None] for index in range(3))
    for window in (*WINDOWS, *WINDOWS):
        output, _ = attention_forward(Layer(), query, key, value, None, attention_batch=batch, sliding_window=window)
        expected = torch.stack([by_formula(text, window)[-1] for text in texts])
        torch.testing.assert_close(output[0], expected)


def test_a_text_of_one_token_is_read_into_a_new_row() -> None:
    text = random_text(2)
    row = KVStorage().reserve(CacheEntry([1, 2]))
    for position in range(2):
        _, [output] = step([(text, row, position, position + 1)], None)
        torch.testing.assert_close(output[0], by_formula(text, None)[position])
