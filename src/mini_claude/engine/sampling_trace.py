"""How a token was chosen: what each sampling parameter, in the order of application, made of the likeliest candidates.

Each step's probabilities come from the functions that the sampler itself uses (distribution.py), given the parameters
up to that step and neutral values for the rest.
"""

import time
from dataclasses import replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mini_claude.engine.distribution import GREEDY_TEMPERATURE, Row, largest_ids, penalize, weights_of
from mini_claude.engine.sequence import ChoiceTrace, Sequence
from mini_claude.types import SamplingParams

MODEL_STEP: Final = "model"
NEUTRAL: Final = SamplingParams()
ORDER: Final = (
    *("repetition_penalty", "presence_penalty", "frequency_penalty", "logit_bias"),
    *("temperature", "top_k", "top_p", "min_p"),
)


def begin_trace(row: Row, sequence: Sequence) -> "SamplingTrace":
    """Before the sampler overwrites the row."""
    started = time.perf_counter()
    trace = SamplingTrace(row.astype(np.float32, copy=True), sequence)
    trace.overhead_seconds = time.perf_counter() - started
    return trace


class SamplingTrace:
    """One token's choice. `row`: [vocabulary], the model's logits."""

    def __init__(self, row: Row, sequence: Sequence) -> None:
        self._row = row
        self._sequence = sequence
        self.overhead_seconds = 0.0

    def finish(self, token_id: int, seconds: float) -> ChoiceTrace:
        """What is known once `token_id` was chosen in so many seconds."""
        started = time.perf_counter()
        params = self._sequence.params
        active = [name for name in ORDER if getattr(params, name) != getattr(NEUTRAL, name)]
        columns = [self._probabilities(NEUTRAL)]
        for count in range(1, len(active) + 1):
            columns.append(self._probabilities(replace(NEUTRAL, **{n: getattr(params, n) for n in active[:count]})))
        ids = [int(each) for each in largest_ids(columns[0], params.trace or 0)]
        if token_id not in ids:
            ids.append(token_id)
        rows = tuple(tuple(_known(column[each]) for column in columns) for each in ids)
        overhead = self.overhead_seconds + time.perf_counter() - started
        return ChoiceTrace((MODEL_STEP, *active), tuple(ids), rows, seconds, overhead)

    def _probabilities(self, params: SamplingParams) -> Row:
        """[vocabulary], 0 for what was taken out."""
        row = self._row.copy()
        penalize(row, params, self._sequence.token_ids, self._sequence.output_token_ids)
        best = int(row.argmax())
        result: NDArray[np.float32] = np.zeros_like(row)
        if params.temperature < GREEDY_TEMPERATURE:
            result[best] = 1.0
            return result
        ids, weights = weights_of(row, float(row[best]), params)
        normalised = weights / weights.sum(dtype=np.float64)
        if ids is None:
            return np.asarray(normalised, np.float32)
        result[ids] = normalised
        return result


def _known(probability: np.float32) -> float | None:
    return float(probability) if probability > 0 else None
