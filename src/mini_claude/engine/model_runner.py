"""Runs one step through the model: parts of sequences in, logits of those that are to be sampled out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from transformers import PreTrainedModel

from mini_claude.engine.attention import StepAttention
from mini_claude.engine.kv_cache import CacheEntry, CacheStorage
from mini_claude.engine.lora import StepRows
from mini_claude.types import AdapterRef


@dataclass(frozen=True, slots=True)
class Part:
    """Tokens of one sequence that a step reads, after the `start` that its entry has computed."""

    entry: CacheEntry
    start: int
    token_ids: list[int]
    is_wanted: bool  # whether the next token will be sampled
    adapter: AdapterRef | None = None


class Runner(Protocol):
    """A prepared model (see model_preparation.py) that reads and writes `storage` instead of a cache of its own."""

    @property
    def storage(self) -> CacheStorage:
        """Where the keys and values are."""
        ...

    @property
    def adapter_rows(self) -> StepRows:
        """Whose tokens a step reads, for the adapters of its layers."""
        ...

    def holds(self, entry: CacheEntry) -> bool:
        """Whether any layer has kept keys and values of this entry."""
        ...

    def read(self, parts: Sequence[Part]) -> torch.Tensor:
        """Read all parts. Returns float32 logits [parts that are wanted, vocabulary], in their order."""
        ...

    def model_changed(self) -> None:
        """Layers or adapters are others now: forget what was recorded of them."""
        ...


def forward(
    model: PreTrainedModel,
    token_ids: torch.Tensor,
    positions: torch.Tensor,
    attention: StepAttention,
    wanted: torch.Tensor | int,
) -> torch.Tensor:
    """Logits in float32, [wanted, vocabulary], of one flat row of tokens, [tokens]; 0 wants all of them.

    The LM head is the largest matmul of a small model: it sees only the rows that will be sampled.
    """
    output = model(
        input_ids=token_ids[None],
        position_ids=positions[None],
        use_cache=False,
        logits_to_keep=wanted,
        attention_batch=attention,
    )
    logits: torch.Tensor = output.logits[0].float()
    return logits
