"""What sampling parameters make of a row of logits, step by step, on plain arrays.

The order is that of `SamplingParams`: penalties and bias on the logits, temperature, then top_k, top_p and min_p. The
sampler draws from what `weights_of` gives, and a trace (sampling_trace.py) shows the same function's results.
"""

from collections.abc import Sequence as AbstractSequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mini_claude.types import SamplingParams

Row = NDArray[np.float32]

GREEDY_TEMPERATURE: Final = 1e-5  # below this, dividing by it overflows; the distribution is a single token anyway
_GROUP: Final = 64  # values, of which one is the largest
_NUM_CANDIDATES: Final = 256  # sorting a whole vocabulary costs more than finding these; a nucleus is rarely larger


def penalize(
    row: Row, params: SamplingParams, token_ids: AbstractSequence[int], output_token_ids: AbstractSequence[int]
) -> None:
    """Penalties and bias, in place. `token_ids` are prompt and reply, `output_token_ids` the reply alone."""
    if params.repetition_penalty != 1.0:
        seen = np.unique(token_ids)
        scores = row[seen]
        row[seen] = np.where(scores > 0, scores / params.repetition_penalty, scores * params.repetition_penalty)
    if params.presence_penalty or params.frequency_penalty:
        ids, counts = np.unique(np.array(output_token_ids, np.int64), return_counts=True)
        row[ids] -= params.presence_penalty + params.frequency_penalty * counts
    if params.logit_bias:
        row[list(params.logit_bias)] += np.array(list(params.logit_bias.values()), np.float32)


def weights_of(row: Row, largest: float, params: SamplingParams) -> tuple[NDArray[np.intp] | None, Row]:
    """(ids, their weights) that a token is drawn from, likeliest first; ids None: all of the vocabulary in order.

    The temperature is above `GREEDY_TEMPERATURE`; `largest` is the row's maximum. Weights are not normalised.
    """
    weights: Row = np.exp((row - np.float32(largest)) / np.float32(params.temperature))  # the likeliest has 1
    if not params.top_k and params.top_p >= 1.0:
        return None, _apply_min_p(weights, params.min_p)
    ids = _nucleus(weights, params)
    return ids, _apply_min_p(weights[ids], params.min_p)


def largest_ids(values: Row, count: int) -> NDArray[np.intp]:
    """Indices of the `count` largest, largest first; of equal ones the lower index first."""
    count = min(count, len(values))
    if not count:
        return np.empty(0, np.intp)
    ids = np.flatnonzero(values >= _threshold(values, count))
    return ids[np.argsort(-values[ids], kind="stable")][:count]


def _threshold(values: Row, count: int) -> np.float32:
    """What at least `count` values reach, and mostly not many more.

    The largest of so many groups do; finding those is five times as fast as finding the exact one among all values.
    """
    num_groups = len(values) // _GROUP
    if num_groups >= count:
        values = values[: num_groups * _GROUP].reshape(_GROUP, num_groups).max(axis=0)
    threshold: np.float32 = np.partition(values, len(values) - count)[len(values) - count]
    return threshold


def _nucleus(weights: Row, params: SamplingParams) -> NDArray[np.intp]:
    """Ids of what top_k leaves and then top_p leaves of that, likeliest first."""
    total = float(weights.sum())
    ids = largest_ids(weights, _NUM_CANDIDATES)
    by_mass = not params.top_k and float(weights[ids].sum()) >= params.top_p * total
    is_enough = by_mass or 0 < params.top_k <= len(ids)
    if not is_enough:
        ids = largest_ids(weights, len(weights))
    if params.top_k:
        ids = ids[: params.top_k]
        total = float(weights[ids].sum(dtype=np.float64))
    if params.top_p < 1.0:
        kept = weights[ids].astype(np.float64)
        mass_before = kept.cumsum() - kept  # the token that crosses top_p still belongs to the nucleus
        ids = ids[: max(1, int((mass_before < params.top_p * total).sum()))]
    return ids


def _apply_min_p(weights: Row, min_p: float) -> Row:
    """Zero what is less likely than min_p times the likeliest."""
    return np.where(weights >= weights.max() * np.float32(min_p), weights, np.float32(0)) if min_p else weights
