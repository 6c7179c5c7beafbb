"""What the sliders and the seed's field mean."""

import pytest

from mini_claude.errors import InvalidRequest
from mini_claude.web.page.sampling_sliders import SamplingSliders

REST = (0.2, 512, 1, 0, 0, 1)


@pytest.mark.parametrize(("text", "seed"), [("", None), ("  ", None), (None, None), ("0", 0), (" 17 ", 17)])
def test_an_empty_seed_leaves_it_to_chance(text: str | None, seed: int | None) -> None:
    assert SamplingSliders.params((*REST, text)).seed == seed


@pytest.mark.parametrize("text", ["x", "1.5", "1e3"])
def test_a_seed_that_is_no_number_is_refused_by_name(text: str) -> None:
    with pytest.raises(InvalidRequest, match="seed is a whole number"):
        SamplingSliders.params((*REST, text))
