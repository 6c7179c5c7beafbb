"""When a step is captured and when replayed, on graphs that are played by a recorder: only a GPU has real ones."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch

from mini_claude.engine.cuda_graphs import CudaGraphs, Shape

ONE, TWO = Shape(1, 512, uses_adapters=False), Shape(2, 512, uses_adapters=False)


class Step:
    """Doubles a number, the table of this step."""

    def __init__(self) -> None:
        self.number = torch.ones(1)
        self.num_calls = 0

    def __call__(self) -> torch.Tensor:
        self.num_calls += 1
        return self.number * 2


@pytest.fixture
def step(monkeypatch: pytest.MonkeyPatch) -> Step:
    """Captured, and replayed without a call, as far as a recorder of its one kernel can do that."""
    made = Step()

    class Graph:
        def __init__(self) -> None:
            self.output = torch.empty(0)

        def pool(self) -> tuple[int, int]:
            return (0, 1)

        def replay(self) -> None:
            self.output.copy_(made.number * 2)

    @contextmanager
    def capturing(graph: Graph, **_: object) -> Iterator[None]:
        with monkeypatch.context() as patch:  # nothing is computed now; the output is remembered
            patch.setattr(torch.Tensor, "copy_", lambda to, _: setattr(graph, "output", to))
            yield

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", capturing)
    return made


def results(graphs: CudaGraphs, step: Step, shape: Shape, numbers: range) -> list[float]:
    outputs = []
    for number in numbers:
        step.number.fill_(number)
        outputs.append(float(graphs.run(shape, step)))
    return outputs


def test_a_shape_is_run_once_captured_once_and_then_replayed(step: Step) -> None:
    graphs = CudaGraphs()
    assert results(graphs, step, ONE, range(1, 6)) == [2, 4, 6, 8, 10]
    assert step.num_calls == 2
    assert results(graphs, step, TWO, range(1, 3)) == [2, 4]
    assert step.num_calls == 4


@pytest.mark.parametrize("fault", ["refused", "other numbers"])
def test_what_cannot_be_captured_is_run_as_ever(step: Step, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: object) -> None:
        raise RuntimeError("operation not permitted when stream is capturing")

    def spoil(graph: object) -> None:
        graph.output.fill_(7)  # type: ignore[attr-defined]

    replay: Callable[[object], None] = refuse if fault == "refused" else spoil
    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", replay)
    assert results(CudaGraphs(), step, ONE, range(1, 6)) == [2, 4, 6, 8, 10]
    assert step.num_calls == 6  # the attempt to capture is one
