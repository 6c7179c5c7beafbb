"""The sampler for logits that are plain arrays. It draws as sampler.py does, where the rules are explained.

A numpy array costs no import of torch, and where a row has 50,000 scores and a step has few rows, numpy is no slower.
"""

from collections.abc import Sequence as AbstractSequence
from typing import Final

import numpy as np
import structlog
from numpy.typing import NDArray

from mini_claude.engine.sequence import SampledToken, Sequence
from mini_claude.errors import InternalError
from mini_claude.types import SamplingParams

log = structlog.get_logger(__name__)

Row = NDArray[np.float32]

_GREEDY_TEMPERATURE: Final = 1e-5  # below this, dividing by it overflows; the distribution is a single token anyway
_NUM_CANDIDATES: Final = 256  # sorting a whole vocabulary costs more than finding these; a nucleus is rarely larger


class ArraySampler:
    """Chooses one token for each sequence."""

    def sample(
        self, logits: NDArray[np.float32], sequences: AbstractSequence[Sequence]
    ) -> list[SampledToken | InternalError]:
        """logits: [sequences, vocabulary], overwritten. A row that cannot be sampled is an error of that one alone."""
        return [self._sample(row, sequence) for row, sequence in zip(logits, sequences, strict=True)]

    def _sample(self, row: Row, sequence: Sequence) -> SampledToken | InternalError:
        params = sequence.params
        logprobs = None if params.logprobs is None else _log_softmax(row)
        try:
            _penalize(row, sequence)
            best = int(row.argmax())  # of a NaN where there is one
            if not np.isfinite(row[best]):  # -inf elsewhere is a legal way of saying never
                return InternalError("The model gave no usable scores for this request.")
            is_greedy = params.temperature < _GREEDY_TEMPERATURE
            token_id = best if is_greedy else _draw(row, float(row[best]), sequence)
        except Exception:  # whatever one request's parameters do, its neighbours go on
            log.exception("sampling_failed", request_id=sequence.request.request_id)
            return InternalError("The model gave no usable scores for this request.")
        if logprobs is None or params.logprobs is None:
            return SampledToken(token_id)
        top = tuple((int(each), float(logprobs[each])) for each in _largest(logprobs, params.logprobs))
        return SampledToken(token_id, float(logprobs[token_id]), top)


def _log_softmax(row: Row) -> Row:
    shifted = row - row.max()
    result: Row = shifted - np.log(np.exp(shifted).sum())
    return result


def _penalize(row: Row, sequence: Sequence) -> None:
    """Penalties and bias, in place."""
    params = sequence.params
    if params.repetition_penalty != 1.0:
        seen = np.unique(sequence.token_ids)
        scores = row[seen]
        row[seen] = np.where(scores > 0, scores / params.repetition_penalty, scores * params.repetition_penalty)
    if params.presence_penalty or params.frequency_penalty:
        ids, counts = np.unique(np.array(sequence.output_token_ids, np.int64), return_counts=True)
        row[ids] -= params.presence_penalty + params.frequency_penalty * counts
    if params.logit_bias:
        row[list(params.logit_bias)] += np.array(list(params.logit_bias.values()), np.float32)


def _draw(row: Row, largest: float, sequence: Sequence) -> int:
    params = sequence.params
    weights: Row = np.exp((row - np.float32(largest)) / np.float32(params.temperature))  # the likeliest has 1
    uniform = sequence.random.random()
    if not params.top_k and params.top_p >= 1.0:
        return _invert(_apply_min_p(weights, params.min_p), uniform)
    ids = _nucleus(weights, params)
    return int(ids[_invert(_apply_min_p(weights[ids], params.min_p), uniform)])


def _nucleus(weights: Row, params: SamplingParams) -> NDArray[np.intp]:
    """Ids of what top_k leaves and then top_p leaves of that, likeliest first."""
    total = float(weights.sum(dtype=np.float64))
    ids = _largest(weights, _NUM_CANDIDATES)
    by_mass = not params.top_k and float(weights[ids].sum()) >= params.top_p * total
    is_enough = by_mass or 0 < params.top_k <= len(ids)
    if not is_enough:
        ids = _largest(weights, len(weights))
    if params.top_k:
        ids = ids[: params.top_k]
        total = float(weights[ids].sum(dtype=np.float64))
    if params.top_p < 1.0:
        kept = weights[ids].astype(np.float64)
        mass_before = kept.cumsum() - kept  # the token that crosses top_p still belongs to the nucleus
        ids = ids[: max(1, int((mass_before < params.top_p * total).sum()))]
    return ids


def _largest(values: Row, count: int) -> NDArray[np.intp]:
    """Indices of the `count` largest, largest first; of equal ones the lower index first."""
    count = min(count, len(values))
    if not count:
        return np.empty(0, np.intp)
    threshold = np.partition(values, len(values) - count)[len(values) - count]
    ids = np.flatnonzero(values >= threshold)
    return ids[np.argsort(-values[ids], kind="stable")][:count]


def _apply_min_p(weights: Row, min_p: float) -> Row:
    """Zero what is less likely than min_p times the likeliest."""
    return np.where(weights >= weights.max() * np.float32(min_p), weights, np.float32(0)) if min_p else weights


def _invert(weights: Row, uniform: float) -> int:
    """Inverse CDF: the first position at which the running sum exceeds uniform * total."""
    sums = weights.cumsum(dtype=np.float64)
    position = int(np.searchsorted(sums, uniform * sums[-1], side="right"))
    # A uniform within rounding of 1 can point past the end: then it is the last token that has any weight.
    return min(position, int(np.searchsorted(sums, sums[-1], side="left")))
