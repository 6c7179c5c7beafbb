"""What the sampler for arrays does in another order than one would write it down: the same as written down."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mini_claude.engine.array_sampler import invert
from mini_claude.engine.distribution import largest_ids

SIZES = st.one_of(st.integers(1, 300), st.sampled_from([511, 512, 513, 4096, 5000]))
SEEDS = st.integers(0, 2**32 - 1)


@given(st.data(), SIZES, SEEDS, st.booleans())
def test_the_largest_are_found_among_any_number_with_the_first_of_equal_ones_first(
    data: st.DataObject, size: int, seed: int, has_equals: bool
) -> None:
    random = np.random.default_rng(seed)
    values = (random.integers(0, 20, size) if has_equals else random.normal(size=size)).astype(np.float32)
    count = data.draw(st.one_of(st.integers(0, size // 64), st.integers(0, size + 5)))
    assert largest_ids(values, count).tolist() == np.argsort(-values, kind="stable")[:count].tolist()


def test_the_largest_of_a_vocabulary_are_found_wherever_they_are() -> None:
    values = np.random.default_rng(1).normal(size=49_152 + 63).astype(np.float32)
    values[100:400] += 10  # one beside the other
    values[-5:] += 20  # in no group
    assert largest_ids(values, 256).tolist() == np.argsort(-values, kind="stable")[:256].tolist()


@given(SIZES, st.sampled_from([0.0, 0.5, 0.99]), SEEDS, st.floats(0, 1, exclude_max=True))
def test_a_draw_is_where_the_running_sum_passes_it_and_never_where_there_is_no_weight(
    size: int, share_of_zeros: float, seed: int, uniform: float
) -> None:
    random = np.random.default_rng(seed)
    weights = (random.random(size) * (random.random(size) >= share_of_zeros)).astype(np.float32)
    weights[random.integers(size)] = 1.0
    position = invert(weights, uniform)
    sums = weights.cumsum(dtype=np.float64)
    target, rounding = uniform * sums[-1], 1e-6 * sums[-1]
    assert weights[position] > 0
    assert sums[position] - weights[position] - rounding <= target <= sums[position] + rounding


@pytest.mark.parametrize("size", [1, 200, 256, 257, 512, 49_152])
def test_a_draw_at_the_very_end_is_the_last_that_has_any_weight(size: int) -> None:
    weights = np.full(size, 0.1, np.float32)
    weights[size // 2 + 1 :] = 0.0
    assert invert(weights, np.nextafter(1.0, 0.0)) == size // 2
    assert invert(weights, 0.0) == 0
