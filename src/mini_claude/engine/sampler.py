"""From logits to the next token of each sequence.

The order is that of `SamplingParams`: penalties and bias on the logits, temperature, then top_k, top_p and min_p.
A token is drawn by inverse CDF from one uniform number of the sequence's own generator, so the same seed gives the
same text whatever else is in the batch. Every operation works along single rows for the same reason.

On a GPU nothing here waits for the device before all of it has been asked for.

Logprobs are of the model's own distribution: log_softmax of its logits before any of these steps.
"""

import time
from collections import Counter
from collections.abc import Sequence as AbstractSequence
from typing import Final

import structlog
import torch

from mini_claude.engine.sampling_trace import SamplingTrace, begin_trace
from mini_claude.engine.sequence import SampledToken, Sequence
from mini_claude.engine.transfers import Arrival, to_device
from mini_claude.errors import InternalError
from mini_claude.types import SamplingParams

log = structlog.get_logger(__name__)

_GREEDY_TEMPERATURE: Final = 1e-5  # below this, dividing by it overflows; the distribution is a single token anyway
NUM_CANDIDATES: Final = 256  # sorting a whole vocabulary costs a CPU more than the step; a nucleus is rarely larger


class Sampler:
    """Chooses one token for each sequence."""

    def __init__(self, num_candidates: int | None = NUM_CANDIDATES) -> None:
        """None sorts the whole vocabulary: no result has to be looked at to know whether candidates were enough."""
        self._num_candidates = num_candidates

    @torch.inference_mode()
    def sample(self, logits: torch.Tensor, sequences: AbstractSequence[Sequence]) -> list[SampledToken | InternalError]:
        """logits: [sequences, vocabulary], float32, overwritten. A row that cannot be sampled gives an error for
        that sequence alone."""
        if not sequences:
            return []
        traces = [_begin_trace(row, sequence) for row, sequence in zip(logits, sequences, strict=True)]
        started = time.perf_counter()
        logprobs = [_logprobs(row, sequence.params) for row, sequence in zip(logits, sequences, strict=True)]
        for row, sequence in zip(logits, sequences, strict=True):
            try:
                _penalize(row, sequence)
            except Exception:  # whatever one request's parameters do, its neighbours go on
                log.exception("sampling_failed", request_id=sequence.request.request_id)
                row.fill_(float("nan"))
        # NaN and infinity both show in the maximum; -inf elsewhere is a legal way of saying never.
        best_values, chosen = logits.max(dim=-1)
        rows = [row for row, sequence in enumerate(sequences) if sequence.params.temperature >= _GREEDY_TEMPERATURE]
        if rows:
            chosen = _replaced(chosen, rows, self._draw(_rows(logits, rows), [sequences[row] for row in rows]))
        token_ids, is_sound = Arrival(torch.stack((chosen, best_values.isfinite()))).wait().tolist()
        seconds = time.perf_counter() - started
        for row, sequence in enumerate(sequences):
            if sequence.forced_token_id is not None:
                token_ids[row] = sequence.forced_token_id
        return [
            _sampled(token_ids[row], logprobs[row], sequence.params, traces[row], seconds)
            if is_sound[row]
            else InternalError("The model gave no usable scores for this request.")
            for row, sequence in enumerate(sequences)
        ]

    def _draw(self, logits: torch.Tensor, sequences: list[Sequence]) -> torch.Tensor:
        """One token id for each row of logits [rows, vocabulary]."""
        params = [sequence.params for sequence in sequences]
        probs = torch.softmax(logits / _column([each.temperature for each in params], logits), dim=-1)
        uniforms = _column([sequence.random.random() for sequence in sequences], logits)
        ordered = [row for row, each in enumerate(params) if each.top_k > 0 or each.top_p < 1.0]
        if len(ordered) == len(params):
            return self._draw_ordered(probs, uniforms, params)
        drawn = _invert(_apply_min_p(probs, params), uniforms)[:, 0]
        if ordered:
            others = self._draw_ordered(
                _rows(probs, ordered), _rows(uniforms, ordered), [params[row] for row in ordered]
            )
            drawn = _replaced(drawn, ordered, others)
        return drawn

    def _draw_ordered(
        self, probs: torch.Tensor, uniforms: torch.Tensor, params: AbstractSequence[SamplingParams]
    ) -> torch.Tensor:
        """top_k, then top_p of what is left, then min_p, on probabilities [rows, vocabulary]."""
        if self._num_candidates is None:
            return _draw_from(*probs.sort(descending=True, stable=True), uniforms, params)
        weights, ids = probs.topk(min(self._num_candidates, probs.shape[1]))
        drawn = _draw_from(weights, ids, uniforms, params)
        masses: list[float] = weights.sum(dim=-1).tolist()
        lacking = [
            row
            for row, (each, mass) in enumerate(zip(params, masses, strict=True))
            if each.top_k > weights.shape[1] or (not each.top_k and mass < each.top_p)
        ]
        if not lacking:
            return drawn
        values, ids = _rows(probs, lacking).sort(descending=True, stable=True)
        others = _draw_from(values, ids, _rows(uniforms, lacking), [params[row] for row in lacking])
        return _replaced(drawn, lacking, others)


def _logprobs(row: torch.Tensor, params: SamplingParams) -> torch.Tensor | None:
    return torch.log_softmax(row, dim=-1) if params.logprobs is not None else None


def _begin_trace(row: torch.Tensor, sequence: Sequence) -> SamplingTrace | None:
    return None if sequence.params.trace is None else begin_trace(row.float().cpu().numpy(), sequence)


def _sampled(
    token_id: int, logprobs: torch.Tensor | None, params: SamplingParams, trace: SamplingTrace | None, seconds: float
) -> SampledToken:
    choice = None if trace is None else trace.finish(token_id, seconds)
    if logprobs is None or params.logprobs is None:
        return SampledToken(token_id, trace=choice)
    values, ids = logprobs.topk(min(params.logprobs, len(logprobs)))
    top = tuple(zip(ids.tolist(), values.tolist(), strict=True))
    return SampledToken(token_id, float(logprobs[token_id]), top, choice)


def _penalize(row: torch.Tensor, sequence: Sequence) -> None:
    """Penalties and bias, in place on one row of logits."""
    params = sequence.params
    if params.repetition_penalty != 1.0:
        seen = to_device(sorted(set(sequence.token_ids)), torch.int64, row.device)
        scores = row[seen]
        row[seen] = torch.where(scores > 0, scores / params.repetition_penalty, scores * params.repetition_penalty)
    if params.presence_penalty or params.frequency_penalty:
        counts = Counter(sequence.output_token_ids)
        ids = to_device(list(counts), torch.int64, row.device)
        nums = to_device(list(counts.values()), torch.int64, row.device)
        row[ids] -= params.presence_penalty + params.frequency_penalty * nums
    if params.logit_bias:
        ids = to_device(list(params.logit_bias), torch.int64, row.device)
        row[ids] += to_device(list(params.logit_bias.values()), torch.float32, row.device)


def _draw_from(
    weights: torch.Tensor, ids: torch.Tensor, uniforms: torch.Tensor, params: AbstractSequence[SamplingParams]
) -> torch.Tensor:
    """Token ids [rows], drawn from the likeliest tokens, [rows, tokens], likeliest first."""
    num_tokens = weights.shape[1]
    top_k = _column([float(each.top_k or num_tokens) for each in params], weights)
    weights = weights.where(torch.arange(num_tokens, device=weights.device) < top_k, 0.0)
    sums = weights.cumsum(dim=-1)
    has_top_k = _column([float(each.top_k > 0) for each in params], weights) > 0
    totals = sums[:, -1:].where(has_top_k, 1.0)  # of all tokens: probabilities
    # The token that crosses top_p still belongs to the nucleus; a top_p of 1 is no limit, whatever the rounding.
    top_p = _column([each.top_p if each.top_p < 1.0 else 2.0 for each in params], weights)
    is_inside = sums - weights < top_p * totals
    is_inside[:, 0] = True
    positions = _invert(_apply_min_p(weights.where(is_inside, 0.0), params), uniforms)
    return ids.gather(1, positions)[:, 0]


def _apply_min_p(weights: torch.Tensor, params: AbstractSequence[SamplingParams]) -> torch.Tensor:
    """Zero what is less likely than min_p times the likeliest; [rows, tokens]."""
    if not any(each.min_p for each in params):
        return weights
    thresholds = weights.max(dim=-1, keepdim=True).values * _column([each.min_p for each in params], weights)
    return weights.where(weights >= thresholds, 0.0)


def _invert(weights: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """Inverse CDF: the first position, [rows, 1], at which the running sum exceeds uniform * total; [rows, tokens]."""
    sums = weights.cumsum(dim=-1)
    positions = torch.searchsorted(sums, uniforms * sums[:, -1:], right=True)
    # A uniform within rounding of 1 can point past the end: then it is the last token that has any weight.
    return positions.minimum((sums < sums[:, -1:]).sum(dim=-1, keepdim=True))


def _column(values: list[float], like: torch.Tensor) -> torch.Tensor:
    """[rows, 1], on the same device."""
    return to_device(values, torch.float32, like.device)[:, None]


def _rows(tensor: torch.Tensor, rows: list[int]) -> torch.Tensor:
    return tensor if len(rows) == len(tensor) else tensor[to_device(rows, torch.int64, tensor.device)]


def _replaced(tensor: torch.Tensor, rows: list[int], values: torch.Tensor) -> torch.Tensor:
    """A tensor [rows] with other values in some rows."""
    return tensor.index_copy(0, to_device(rows, torch.int64, tensor.device), values)
