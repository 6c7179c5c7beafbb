"""The engine's step over a model that is told what to choose."""

import math
from pathlib import Path

from mini_claude.engine.engine_core import LEAST_LOGPROB, EngineCore
from mini_claude.engine.kv_cache import CacheEntry
from mini_claude.engine.scheduler import ScheduledChunk
from mini_claude.engine.sequence import SampledToken
from mini_claude.models.echo_model import ByteCodec
from mini_claude.types import AdapterRef, GenerationDelta, GenerationRequest, LoadOptions, SamplingParams


class NoStorage:
    """Keeps nothing."""

    def can_reuse(self, source: CacheEntry, num_tokens: int) -> bool:
        return False

    def copy_prefix(self, source: CacheEntry, target: CacheEntry, num_tokens: int) -> None:
        raise AssertionError

    def truncate(self, entry: CacheEntry, num_tokens: int) -> None:
        pass

    def free(self, entry: CacheEntry) -> None:
        pass


class GlassModel:
    """Chooses the same token for everybody."""

    def __init__(self, choice: SampledToken) -> None:
        self.storage = NoStorage()
        self._choice = choice

    def step(self, chunks: list[ScheduledChunk]) -> list[SampledToken]:
        return [self._choice for chunk in chunks if chunk.completes]

    def read_adapter(self, folder: Path) -> None:
        raise AssertionError

    def add_adapter(self, adapter: AdapterRef, weights: object) -> None:
        raise AssertionError

    def remove_adapter(self, adapter: AdapterRef) -> None:
        raise AssertionError

    def close(self) -> None:
        pass


def test_logprobs_of_what_is_impossible_are_numbers_that_json_can_say() -> None:
    choice = SampledToken(ord("a"), -math.inf, ((ord("b"), -0.5), (ord("a"), -math.inf)))
    core = EngineCore(GlassModel(choice), ByteCodec(), 100, LoadOptions())  # type: ignore[arg-type]
    core.add(GenerationRequest("r", (1, 2), SamplingParams(max_tokens=1, logprobs=2)))
    (delta,) = core.step()
    assert isinstance(delta, GenerationDelta)
    assert delta.logprobs is not None
    (token,) = delta.logprobs
    assert (token.logprob, [top.logprob for top in token.top]) == (LEAST_LOGPROB, [-0.5, LEAST_LOGPROB])
