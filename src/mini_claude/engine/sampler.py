"""From logits to the next token of each sequence.

The order is that of `SamplingParams`: penalties and bias on the logits, temperature, then top_k, top_p and min_p.
A token is drawn by inverse CDF from one uniform number of the sequence's own generator, so the same seed gives the
same text whatever else is in the batch. Every operation works along single rows for the same reason.

Logprobs are of the model's own distribution: log_softmax of its logits before any of these steps.
"""

from collections.abc import Sequence as AbstractSequence

import structlog
import torch

from mini_claude.engine.sequence import SampledToken, Sequence
from mini_claude.errors import InternalError
from mini_claude.types import SamplingParams

log = structlog.get_logger(__name__)

_GREEDY_TEMPERATURE = 1e-5  # below this, dividing by it overflows; the distribution is a single token anyway
_NUM_CANDIDATES = 256  # sorting a whole vocabulary costs more than the model's step; a nucleus is rarely larger


class Sampler:
    """Chooses one token for each sequence."""

    @torch.inference_mode()
    def sample(self, logits: torch.Tensor, sequences: AbstractSequence[Sequence]) -> list[SampledToken | InternalError]:
        """logits: [sequences, vocabulary], float32, overwritten. A row that cannot be sampled gives an error for
        that sequence alone."""
        if not sequences:
            return []
        logprobs = [_logprobs(row, sequence.params) for row, sequence in zip(logits, sequences, strict=True)]
        for row, sequence in zip(logits, sequences, strict=True):
            try:
                _penalize(row, sequence)
            except Exception:  # whatever one request's parameters do, its neighbours go on
                log.exception("sampling_failed", request_id=sequence.request.request_id)
                row.fill_(float("nan"))
        # NaN and infinity both show in the maximum; -inf elsewhere is a legal way of saying never.
        best_values, best_ids = logits.max(dim=-1)
        chosen: list[int] = best_ids.tolist()
        is_sound: list[bool] = best_values.isfinite().tolist()
        rows = [
            row
            for row, sequence in enumerate(sequences)
            if is_sound[row] and sequence.params.temperature >= _GREEDY_TEMPERATURE
        ]
        if rows:
            drawn = _draw(logits[rows], [sequences[row] for row in rows])
            for row, token_id in zip(rows, drawn, strict=True):
                chosen[row] = token_id
        return [
            _sampled(chosen[row], logprobs[row], sequence.params)
            if is_sound[row]
            else InternalError("The model gave no usable scores for this request.")
            for row, sequence in enumerate(sequences)
        ]


def _logprobs(row: torch.Tensor, params: SamplingParams) -> torch.Tensor | None:
    return torch.log_softmax(row, dim=-1) if params.logprobs is not None else None


def _sampled(token_id: int, logprobs: torch.Tensor | None, params: SamplingParams) -> SampledToken:
    if logprobs is None or params.logprobs is None:
        return SampledToken(token_id)
    values, ids = logprobs.topk(min(params.logprobs, len(logprobs)))
    top = tuple(zip(ids.tolist(), values.tolist(), strict=True))
    return SampledToken(token_id, float(logprobs[token_id]), top)


def _penalize(row: torch.Tensor, sequence: Sequence) -> None:
    """Penalties and bias, in place on one row of logits."""
    params = sequence.params
    if params.repetition_penalty != 1.0:
        seen = torch.tensor(sorted(set(sequence.token_ids)), device=row.device)
        scores = row[seen]
        row[seen] = torch.where(scores > 0, scores / params.repetition_penalty, scores * params.repetition_penalty)
    if params.presence_penalty or params.frequency_penalty:
        output = torch.tensor(sequence.output_token_ids, dtype=torch.long, device=row.device)
        ids, counts = torch.unique(output, return_counts=True)
        row[ids] -= params.presence_penalty + params.frequency_penalty * counts
    if params.logit_bias:
        row[list(params.logit_bias)] += torch.tensor(list(params.logit_bias.values()), device=row.device)


def _draw(logits: torch.Tensor, sequences: list[Sequence]) -> list[int]:
    """One token id for each row of logits [rows, vocabulary]."""
    temperatures = torch.tensor([[sequence.params.temperature] for sequence in sequences], device=logits.device)
    probs = torch.softmax(logits / temperatures, dim=-1)
    uniforms = [sequence.random.random() for sequence in sequences]
    unsorted = [row for row, sequence in enumerate(sequences) if not _needs_order(sequence.params)]
    token_ids: dict[int, int] = {}
    if unsorted:
        min_p = [sequences[row].params.min_p for row in unsorted]
        weights = _apply_min_p(probs[unsorted], min_p)
        positions = _invert(weights, [uniforms[row] for row in unsorted])
        token_ids.update(zip(unsorted, positions, strict=True))
    for row in range(len(sequences)):
        if row not in token_ids:
            token_ids[row] = _draw_ordered(probs[row], uniforms[row], sequences[row].params)
    return [token_ids[row] for row in range(len(sequences))]


def _needs_order(params: SamplingParams) -> bool:
    return params.top_k > 0 or params.top_p < 1.0


def _draw_ordered(probs: torch.Tensor, uniform: float, params: SamplingParams) -> int:
    """top_k, then top_p of what is left, then min_p, on one row [vocabulary] of probabilities."""
    num_tokens = len(probs)
    weights, ids = probs.topk(min(_NUM_CANDIDATES, num_tokens))
    by_mass = not params.top_k and float(weights.sum()) >= params.top_p
    is_enough = by_mass or 0 < params.top_k <= len(weights)
    if not is_enough:
        weights, ids = probs.sort(descending=True, stable=True)
    if params.top_k > 0:
        weights = weights[: params.top_k]
        total = weights.sum()
    else:
        total = probs.sum()
    if params.top_p < 1.0:
        mass_before = weights.cumsum(0) - weights  # the token that crosses top_p still belongs to the nucleus
        weights = weights[: max(1, int((mass_before < params.top_p * total).sum()))]
    position = _invert(_apply_min_p(weights[None], [params.min_p]), [uniform])[0]
    return int(ids[position])


def _apply_min_p(weights: torch.Tensor, min_p: list[float]) -> torch.Tensor:
    """Zero what is less likely than min_p times the likeliest; [rows, tokens]."""
    if not any(min_p):
        return weights
    thresholds = weights.max(dim=-1, keepdim=True).values * torch.tensor(min_p, device=weights.device)[:, None]
    return weights.where(weights >= thresholds, 0.0)


def _invert(weights: torch.Tensor, uniforms: list[float]) -> list[int]:
    """Inverse CDF: the first position at which the running sum exceeds uniform * total; [rows, tokens]."""
    sums = weights.cumsum(dim=-1)
    targets = torch.tensor(uniforms, device=weights.device)[:, None] * sums[:, -1:]
    positions = torch.searchsorted(sums, targets, right=True)[:, 0]
    # A uniform within rounding of 1 can point past the end: then it is the last token that has any weight.
    return positions.minimum((sums < sums[:, -1:]).sum(dim=-1)).tolist()
