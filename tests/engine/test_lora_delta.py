"""All adapters of a layer at once give each token what its own adapter alone would have given it."""

import pytest
import torch

from mini_claude.engine.lora_delta import DeltaStack, LoraDelta

NUM_IN, NUM_OUT = 5, 7
NUMBERS = torch.tensor([2, -1, 0, 2, -1, 3, 0])


@pytest.fixture
def deltas() -> dict[int, LoraDelta]:
    """Of several ranks, by numbers with a gap; the last is DoRA's."""
    torch.manual_seed(2)
    plain = {
        number: LoraDelta(torch.randn(rank, NUM_IN), torch.randn(NUM_OUT, rank)) for number, rank in ((0, 3), (2, 8))
    }
    dora = LoraDelta(torch.randn(4, NUM_IN), torch.randn(NUM_OUT, 4), torch.rand(NUM_OUT) + 0.5, torch.randn(NUM_OUT))
    return {**plain, 3: dora}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("with_dora", [True, False])
def test_a_mixture_is_the_sum_of_its_parts(deltas: dict[int, LoraDelta], dtype: torch.dtype, with_dora: bool) -> None:
    numbers = NUMBERS if with_dora else NUMBERS.where(NUMBERS != 3, 0)
    x, output = torch.randn(1, 7, NUM_IN).to(dtype), torch.randn(1, 7, NUM_OUT).to(dtype)
    expected = output.clone()
    for number, delta in deltas.items():
        if (numbers == number).any():
            delta.apply(x, expected, torch.nonzero(numbers == number)[:, 0])
    actual = output.clone()
    DeltaStack({n: delta for n, delta in deltas.items() if with_dora or n != 3}).apply(x, actual, numbers)
    torch.testing.assert_close(actual, expected, rtol=1e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-5)
    assert torch.equal(actual[0, numbers == -1], output[0, numbers == -1])  # the base model's, to the last bit


def test_a_token_that_overflows_under_anothers_ranks_stays_as_it_was(deltas: dict[int, LoraDelta]) -> None:
    x = torch.full((1, 1, NUM_IN), 3e38)
    output = torch.ones(1, 1, NUM_OUT)
    DeltaStack(deltas).apply(x, output, torch.tensor([-1]))
    assert torch.equal(output, torch.ones(1, 1, NUM_OUT))
