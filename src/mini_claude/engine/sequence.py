"""One request on its way through the engine. Torch-free: the scheduler reads and writes it."""

from dataclasses import dataclass, field
from enum import Enum, auto
from random import Random

import msgspec

from mini_claude.engine.kv_cache import CacheEntry
from mini_claude.engine.reply_text import ReplyText
from mini_claude.engine.stage_clock import StageClock
from mini_claude.types import GenerationRequest, SamplingParams, Usage


class SampledToken(msgspec.Struct, frozen=True):
    """The chosen token and, where they were asked for, its logprob and the most probable ones, best first."""

    token_id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()
    trace: "ChoiceTrace | None" = None


@dataclass(frozen=True, slots=True)
class ChoiceTrace:
    """What a sampler did for one token: see `TokenTrace`. `probabilities`: [candidates][steps].

    `seconds` were needed to choose, `overhead_seconds` to record this.
    """

    steps: tuple[str, ...]
    token_ids: tuple[int, ...]
    probabilities: tuple[tuple[float | None, ...], ...]
    seconds: float = 0.0
    overhead_seconds: float = 0.0


class Status(Enum):
    """waiting -> running -> finished; a preempted sequence waits again."""

    WAITING = auto()
    RUNNING = auto()
    FINISHED = auto()


@dataclass(slots=True, eq=False)
class Sequence:
    """Prompt and reply as one list of token ids, and how far the model has read into it.

    A sequence that has been read up to its last token is sampled: the new token is appended and read in the next
    step. Prefill and decode differ only in how many tokens are unread.
    """

    request: GenerationRequest
    max_new_tokens: int
    text: ReplyText
    random: Random  # this sequence's own source of chance: neighbours cannot change its text
    token_ids: list[int] = field(init=False)
    num_prompt_tokens: int = field(init=False)
    status: Status = Status.WAITING
    entry: CacheEntry | None = None  # its place in the KV cache while it runs
    num_cached_tokens: int = 0  # of the prompt, found in the prefix cache
    clock: StageClock | None = None  # of a reply that is traced

    def __post_init__(self) -> None:
        self.token_ids = list(self.request.prompt_token_ids)
        self.num_prompt_tokens = len(self.token_ids)

    @property
    def params(self) -> SamplingParams:
        """How its tokens are chosen."""
        return self.request.params

    @property
    def output_token_ids(self) -> list[int]:
        """What was generated so far, a stop id included."""
        return self.token_ids[self.num_prompt_tokens :]

    @property
    def num_generated(self) -> int:
        """Number of generated tokens, a stop id included."""
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def forced_token_id(self) -> int | None:
        """What the next token has to be, None where it is chosen."""
        forced = self.params.forced_token_ids
        return forced[self.num_generated] if self.num_generated < len(forced) else None

    @property
    def num_computed_tokens(self) -> int:
        """Tokens whose keys and values are in the cache."""
        return self.entry.num_computed if self.entry is not None else 0

    @property
    def num_unread_tokens(self) -> int:
        """Tokens that the model must still read before the next one can be sampled; 1 while decoding."""
        return len(self.token_ids) - self.num_computed_tokens

    @property
    def usage(self) -> Usage:
        """Token counts up to now."""
        return Usage(self.num_prompt_tokens, self.num_generated, self.num_cached_tokens)
