"""Memory that training is refused becomes an error that says what to change; other errors stay what they are."""

import resource

import pytest
import torch

from mini_claude.errors import InvalidRequest, ModelLoadError
from mini_claude.runtime.memory_limit import memory_limit


def test_what_needs_more_is_refused_by_name_and_the_limit_ends_with_it() -> None:
    before = resource.getrlimit(resource.RLIMIT_DATA)
    with memory_limit(0.5):
        assert torch.ones(10**6).sum() == 10**6
    with pytest.raises(InvalidRequest, match=r"than the 0\.5 GB .* smaller") as caught, memory_limit(0.5):
        torch.ones(10**9)
    assert caught.value.code == "insufficient_memory"
    assert resource.getrlimit(resource.RLIMIT_DATA) == before


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")])
def test_without_a_limit_refused_memory_is_told_as_well(error: Exception) -> None:
    with pytest.raises(InvalidRequest, match="needs more memory: use"), memory_limit(0):
        raise error


def test_a_model_that_cannot_be_loaded_for_it_counts() -> None:
    with pytest.raises(InvalidRequest, match="needs more memory"), memory_limit(0):
        raise ModelLoadError("The weights cannot be read.") from RuntimeError("can't allocate memory")


def test_other_errors_pass() -> None:
    with pytest.raises(RuntimeError, match="shapes do not fit"), memory_limit(1):
        raise RuntimeError("shapes do not fit")
