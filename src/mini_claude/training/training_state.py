"""Where a run is: what changes from step to step beside weights and optimizer. Plain values, as JSON in checkpoints."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The model on the held-out part after `step` steps; `metrics` holds at least `loss`, a mean by weight."""

    step: int
    metrics: Mapping[str, float]

    @property
    def loss(self) -> float:
        """In nats a token (SFT) or a pair (DPO)."""
        return self.metrics["loss"]


@dataclass(frozen=True, slots=True)
class TrainingState:
    """`step` steps are done; it is also the position in the data, which follows from it (batching.py)."""

    step: int = 0
    tokens_seen: int = 0  # of the examples, supervised or not
    weight_seen: int = 0  # supervised tokens (SFT) or pairs (DPO)
    loss_sum: float = 0.0  # over all weight seen
    seconds: float = 0.0  # spent in steps
    evaluations: tuple[Evaluation, ...] = ()

    @property
    def best(self) -> Evaluation | None:
        """The evaluation with the lowest loss, the earliest of equals."""
        return min(self.evaluations, key=lambda evaluation: evaluation.loss, default=None)

    @property
    def is_evaluated(self) -> bool:
        """Whether the weights as they are now were evaluated."""
        return bool(self.evaluations) and self.evaluations[-1].step == self.step

    def evaluated(self, metrics: Mapping[str, float]) -> "TrainingState":
        """With an evaluation more."""
        return replace(self, evaluations=(*self.evaluations, Evaluation(self.step, metrics)))

    def to_json(self) -> dict[str, Any]:
        """What `from_json` reads."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "TrainingState":
        """Raises `TypeError` or `KeyError` where the values are not a state's."""
        evaluations = tuple(Evaluation(**evaluation) for evaluation in values["evaluations"])
        return cls(**{**values, "evaluations": evaluations})
