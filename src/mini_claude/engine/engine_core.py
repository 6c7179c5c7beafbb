"""The engine's step, without threads and without asyncio: schedule, run, sample, postprocess.

What runs and samples is a `StepModel`: torch or llama.cpp. Everything else is the same for both, and knows neither.

A request's life: `add` queues it, `schedule` gives it room and reads its prompt in chunks, sampling appends a
token a step, and `_advance` ends it by a stop id, a stop string, its length or an abort. Its keys and values then
stay in the cache as an idle prefix.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Final, Protocol

import structlog
from msgspec import structs

from mini_claude.engine.admission import max_new_tokens
from mini_claude.engine.kv_cache import CacheStorage, KVCache
from mini_claude.engine.reply_text import ReplyText
from mini_claude.engine.scheduler import ScheduledChunk, Scheduler
from mini_claude.engine.sequence import SampledToken, Sequence
from mini_claude.engine.stage_clock import StageClock
from mini_claude.errors import InternalError
from mini_claude.models.base_model import TextCodec
from mini_claude.types import (
    AdapterRef,
    CandidateTrace,
    EngineStats,
    FinishReason,
    GenerationDelta,
    GenerationRequest,
    LoadOptions,
    TokenLogprob,
    TokenTrace,
    TopLogprob,
)

log = structlog.get_logger(__name__)


LEAST_LOGPROB: Final = -9999.0  # for what is impossible, as OpenAI's API says it: JSON knows no infinity


@dataclass(frozen=True, slots=True)
class RequestFailure:
    """The request ended without a result."""

    request_id: str
    error: InternalError


StepOutput = GenerationDelta | RequestFailure


class StepModel(Protocol):
    """A model with its cache and its adapters. Used from one thread, but for `read_adapter`."""

    @property
    def storage(self) -> CacheStorage:
        """Where the keys and values are that `step` reads and writes."""
        ...

    def step(self, chunks: list[ScheduledChunk]) -> list[SampledToken | InternalError]:
        """Read all chunks, and choose the next token of each that completes, in their order.

        An error is of that sequence alone; when this raises, the whole step has failed.
        """
        ...

    def read_adapter(self, folder: Path) -> Any:
        """What `add_adapter` wants, from an adapter's files; in any thread.

        Raises `UnsafeModelFile` or `ModelLoadError`.
        """
        ...

    def add_adapter(self, adapter: AdapterRef, weights: Any) -> None:
        """Put an adapter in place that `read_adapter` has read. When this raises, nothing has changed."""
        ...

    def remove_adapter(self, adapter: AdapterRef) -> None:
        """Forget an adapter that no sequence uses."""
        ...

    def close(self) -> None:
        """Give memory back that is not Python's; nothing is asked for afterwards."""
        ...


class EngineCore:
    """All sequences of one model. Used from one thread."""

    def __init__(self, model: StepModel, codec: TextCodec, context_length: int, options: LoadOptions) -> None:
        self.model = model
        self._codec = codec
        self._cache = KVCache(options.kv_cache_tokens, model.storage)
        self._scheduler = Scheduler(self._cache, options.max_num_seqs, options.max_num_batched_tokens)
        self._sequences: dict[str, Sequence] = {}
        self.context_length = min(context_length, self._cache.num_tokens)
        self._num_prompt_tokens = self._num_cached_tokens = self._num_generated_tokens = self._num_steps = 0

    @property
    def is_idle(self) -> bool:
        """Whether a step would do nothing."""
        return not self._sequences

    def add_adapter(self, adapter: AdapterRef, weights: Any) -> None:
        """See `StepModel.add_adapter`."""
        self.model.add_adapter(adapter, weights)

    def remove_adapter(self, adapter: AdapterRef) -> None:
        """Forget an adapter that no sequence uses, and what was cached of its replies."""
        self.model.remove_adapter(adapter)
        self._cache.forget(adapter)

    def add(self, request: GenerationRequest) -> None:
        """Queue a request that `check_request` has passed and whose adapter is in place."""
        sequence = Sequence(
            request,
            max_new_tokens(request, self.context_length),
            ReplyText(self._codec, request.params.stop),
            Random(request.params.seed),  # noqa: S311 - chance for text, not for secrets
        )
        if request.params.trace is not None:
            sequence.clock = StageClock()
        self._sequences[request.request_id] = sequence
        self._scheduler.add(sequence)

    def abort(self, request_id: str) -> list[StepOutput]:
        """End a request at once; its last delta, or nothing when it is not known (any more)."""
        sequence = self._sequences.get(request_id)
        return [] if sequence is None else [self._finish(sequence, "", (), None, "abort")]

    def step(self) -> list[StepOutput]:
        """Let every running sequence advance by one token or one chunk of its prompt.

        When the model itself fails, the requests it was computing fail and the others go on.
        """
        chunks = self._scheduler.schedule()
        if not chunks:
            return []
        started = time.perf_counter()
        try:
            sampled = self.model.step(chunks)
        except Exception:  # whatever it is, a client must not wait for ever
            log.exception("engine_step_failed", num_sequences=len(chunks))
            error = InternalError("The model failed while computing this reply.")
            return [self._fail(chunk.sequence, error) for chunk in chunks]
        self._num_steps += 1
        ended = time.perf_counter()
        for chunk in chunks:
            assert chunk.sequence.entry is not None
            chunk.sequence.entry.num_computed += chunk.num_tokens
            if chunk.sequence.clock is not None:
                chunk.sequence.clock.scheduled(started)
                chunk.sequence.clock.computed(ended - started)
        completing = (chunk.sequence for chunk in chunks if chunk.completes)
        return [self._advance(sequence, token) for sequence, token in zip(completing, sampled, strict=True)]

    def fail_all(self) -> list[StepOutput]:
        """End everything with an error."""
        error = InternalError("The engine failed while computing this reply.")
        return [self._fail(sequence, error) for sequence in tuple(self._sequences.values())]

    def close(self) -> list[StepOutput]:
        """Abort everything and forget what was cached."""
        outputs = [output for request_id in tuple(self._sequences) for output in self.abort(request_id)]
        self._cache.clear()
        self.model.close()
        return outputs

    def stats(self) -> EngineStats:
        """A snapshot."""
        return EngineStats(
            running=len(self._scheduler.running),
            waiting=len(self._scheduler.waiting),
            kv_tokens_used=self._cache.num_used_tokens,
            kv_tokens_cached=self._cache.num_idle_tokens,
            kv_tokens_total=self._cache.num_tokens,
            prompt_tokens_total=self._num_prompt_tokens,
            cached_tokens_total=self._num_cached_tokens,
            generated_tokens_total=self._num_generated_tokens,
            preemptions_total=self._scheduler.num_preemptions,
            steps_total=self._num_steps,
        )

    def _advance(self, sequence: Sequence, sampled: SampledToken | InternalError) -> StepOutput:
        """Append a token; decide whether the sequence ends with it."""
        if isinstance(sampled, InternalError):
            return self._fail(sequence, sampled)
        num_generated = sequence.num_generated + 1
        if num_generated == 1:
            self._num_prompt_tokens += sequence.num_prompt_tokens
            self._num_cached_tokens += sequence.num_cached_tokens
        sequence.token_ids.append(sampled.token_id)
        self._num_generated_tokens += 1
        params = sequence.params
        if sampled.token_id in params.stop_token_ids and not params.ignore_eos:
            return self._traced(self._finish(sequence, "", (), None, "stop"), sequence, sampled, 0.0)
        started = time.perf_counter()
        try:
            text, stopped = sequence.text.push(sampled.token_id)
            logprobs = self._token_logprobs(sampled)
        except Exception:
            log.exception("detokenizing_failed", request_id=sequence.request.request_id)
            return self._fail(sequence, InternalError("A token of the reply could not be turned into text."))
        seconds = time.perf_counter() - started
        if stopped or num_generated >= sequence.max_new_tokens:
            reason: FinishReason = "stop" if stopped else "length"
            delta = self._finish(sequence, text, (sampled.token_id,), logprobs, reason, stopped=stopped)
        else:
            delta = GenerationDelta(sequence.request.request_id, text, (sampled.token_id,), logprobs)
        return self._traced(delta, sequence, sampled, seconds)

    def _traced(
        self, delta: GenerationDelta, sequence: Sequence, sampled: SampledToken, detokenize_seconds: float
    ) -> GenerationDelta:
        """The delta with how its token was chosen, where that was asked for."""
        choice, clock = sampled.trace, sequence.clock
        if choice is None or clock is None:
            return delta
        clock.sampled(choice.seconds, choice.overhead_seconds)
        candidates = tuple(
            CandidateTrace(token_id, self._name(token_id)[0], probabilities)
            for token_id, probabilities in zip(choice.token_ids, choice.probabilities, strict=True)
        )
        trace = TokenTrace(
            sampled.token_id,
            self._name(sampled.token_id)[0],
            sequence.num_generated <= len(sequence.params.forced_token_ids),
            choice.steps,
            candidates,
            clock.take(detokenize_seconds),
        )
        return structs.replace(delta, trace=(trace,))

    def _finish(
        self,
        sequence: Sequence,
        text: str,
        token_ids: tuple[int, ...],
        logprobs: tuple[TokenLogprob, ...] | None,
        finish_reason: FinishReason,
        *,
        stopped: bool = False,
    ) -> GenerationDelta:
        """The last delta, with the text that was held back. A stop string may hide in that text."""
        if not stopped:
            rest, stopped = sequence.text.flush()
            text += rest
            finish_reason = "stop" if stopped else finish_reason
        self._remove(sequence, keep_prefix=True)
        if sequence.params.logprobs is not None and logprobs is None:
            logprobs = ()
        return GenerationDelta(sequence.request.request_id, text, token_ids, logprobs, finish_reason, sequence.usage)

    def _fail(self, sequence: Sequence, error: InternalError) -> RequestFailure:
        self._remove(sequence, keep_prefix=False)
        return RequestFailure(sequence.request.request_id, error)

    def _remove(self, sequence: Sequence, *, keep_prefix: bool) -> None:
        self._scheduler.finish(sequence, keep_prefix=keep_prefix)
        del self._sequences[sequence.request.request_id]

    def _token_logprobs(self, sampled: SampledToken) -> tuple[TokenLogprob, ...] | None:
        if sampled.logprob is None:
            return None
        top = tuple(TopLogprob(token_id, *self._name(token_id), _shown(logprob)) for token_id, logprob in sampled.top)
        return (TokenLogprob(sampled.token_id, *self._name(sampled.token_id), _shown(sampled.logprob), top),)

    def _name(self, token_id: int) -> tuple[str, bytes]:
        token_bytes = self._codec.token_bytes(token_id)
        return token_bytes.decode("utf-8", "replace"), token_bytes


def _shown(logprob: float) -> float:
    return max(logprob, LEAST_LOGPROB)
