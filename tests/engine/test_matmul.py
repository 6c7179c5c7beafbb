"""Every way to multiply gives what torch's own call gives, and the choice leaves weights as they were."""

from collections.abc import Callable

import pytest
import torch
from torch.nn.functional import linear

from mini_claude.engine import matmul
from mini_claude.engine.matmul import Matmul, MatmulChoice, TorchMatmul

IN_FEATURES, OUT_FEATURES = 48, 80


@pytest.fixture
def weight() -> torch.Tensor:
    return torch.randn(OUT_FEATURES, IN_FEATURES, generator=torch.Generator().manual_seed(0))


def ways(weight: torch.Tensor, *, is_shared: bool) -> list[Callable[[torch.Tensor], Matmul]]:
    """Torch's own and all others that this machine has."""
    return [TorchMatmul, *matmul._candidates(weight, is_shared=is_shared)]


@pytest.mark.parametrize("is_shared", [True, False])
@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("num_rows", [1, 3, 16, 70])
@torch.inference_mode()
def test_every_way_agrees_with_torch(weight: torch.Tensor, num_rows: int, has_bias: bool, is_shared: bool) -> None:
    x = torch.randn(2, num_rows, IN_FEATURES, generator=torch.Generator().manual_seed(1))
    bias = torch.arange(OUT_FEATURES, dtype=torch.float32) if has_bias else None
    expected = linear(x, weight, bias)
    for way in ways(weight, is_shared=is_shared):
        assert torch.allclose(way(weight.clone())(x, bias), expected, rtol=1e-4, atol=1e-4), way


@pytest.mark.parametrize("is_shared", [True, False])
@torch.inference_mode()
def test_bfloat16_is_multiplied_by_torch_alone_where_the_processor_lacks_it(
    weight: torch.Tensor, is_shared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for_float32 = ways(weight, is_shared=is_shared)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    assert ways(weight.bfloat16(), is_shared=is_shared) == [TorchMatmul]
    assert ways(weight, is_shared=is_shared) == for_float32


@torch.inference_mode()
def test_another_way_must_be_clearly_faster_than_torchs_own(
    weight: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Packed(TorchMatmul):
        pass

    seconds = {TorchMatmul: 1.0, Packed: 0.95}
    monkeypatch.setattr(matmul, "_candidates", lambda weight, *, is_shared: [Packed])
    monkeypatch.setattr(matmul, "_time", lambda matmuls, weight: seconds[type(matmuls[0])])
    assert type(MatmulChoice().make(weight, is_shared=False)) is TorchMatmul
    seconds[Packed] = 0.5
    assert type(MatmulChoice().make(weight, is_shared=False)) is Packed


@torch.inference_mode()
def test_a_shape_is_timed_once(weight: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    timed: list[torch.Size] = []

    def fastest(weight: torch.Tensor, candidates: object) -> type[TorchMatmul]:
        timed.append(weight.shape)
        return TorchMatmul

    monkeypatch.setattr(matmul, "_fastest", fastest)
    choice = MatmulChoice()
    for other in (weight, weight.clone(), weight.T.contiguous()):
        choice.make(other, is_shared=False)
    assert timed == [weight.shape, weight.T.shape]


@torch.inference_mode()
def test_a_shared_weight_is_neither_copied_nor_changed(weight: torch.Tensor) -> None:
    before = weight.clone()
    for way in ways(weight, is_shared=True):
        product = way(weight)
        product(torch.ones(1, 1, IN_FEATURES), None)
        assert any(value is weight for value in vars(product).values())
    assert torch.equal(weight, before)
