"""An engine without a model: it answers with the prompt's own tokens.

It keeps every promise of the protocol (one delta a token, stop strings, limits, aborts, a bounded queue,
usage and stats), so that everything around an engine can be tested in milliseconds and without torch.
"""

import asyncio
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass
from itertools import cycle, islice

from msgspec import structs

from mini_claude.engine.admission import Crowd, Turns, check_request, max_new_tokens
from mini_claude.engine.reply_text import ReplyText
from mini_claude.errors import Conflict, InternalError, Unavailable
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
    Usage,
)

POISON = "poison"  # a prompt with this word fails after two tokens: for tests of error paths


@dataclass(slots=True)
class _Reply:
    """A request in progress. `slot` resolves when it may run; an abort resolves it too."""

    request: GenerationRequest
    slot: asyncio.Future[None]
    num_generated: int = 0
    aborted: bool = False


class EchoEngine:
    """Repeats the prompt once and ends with "stop"; with `ignore_eos`, over and over until max_tokens.

    `token_seconds` is the time that each token takes; at 0 the loop is merely given a turn. A stop token id
    inside the prompt does not end the reply.
    """

    def __init__(self, codec: TextCodec, context_length: int, options: LoadOptions, token_seconds: float = 0.0) -> None:
        self._codec = codec
        self._context_length = context_length
        self._options = options
        self._token_seconds = token_seconds
        self._replies: dict[str, _Reply] = {}
        self._crowd = Crowd(options)
        self._turns = Turns()
        self._stats = EngineStats(kv_tokens_total=options.kv_cache_tokens)
        self._closed = False

    @property
    def context_length(self) -> int:
        """The most tokens that prompt and completion may have together."""
        return self._context_length

    def check_room(self, owner: str) -> None:
        """See `Engine.check_room`."""
        self._crowd.check_room(owner)

    def check(self, request: GenerationRequest) -> None:
        """See `Engine.check`."""
        if self._closed:
            raise Unavailable("The model is being unloaded.")
        if request.request_id in self._replies:
            raise Conflict(f"A request with the id {request.request_id!r} is running already.")
        check_request(request, self._context_length, self._codec.vocab_size)
        self.check_room(request.owner)

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[GenerationDelta, None]:
        """See `Engine.generate`."""
        self.check(request)
        reply = _Reply(request, asyncio.get_running_loop().create_future())
        self._replies[request.request_id] = reply
        self._crowd.enter(request)
        self._fill_slots()
        try:
            await reply.slot
            async for delta in self._run(reply):
                self._crowd.answered(request.request_id)
                yield delta
        finally:
            del self._replies[request.request_id]
            self._crowd.leave(request.request_id)
            self._fill_slots()

    async def load_adapter(self, adapter: AdapterRef) -> None:
        """See `Engine.load_adapter`. An echo stays the same with any."""

    def remove_adapter(self, adapter: AdapterRef) -> None:
        """See `Engine.remove_adapter`."""

    def abort(self, request_id: str) -> None:
        """See `Engine.abort`."""
        reply = self._replies.get(request_id)
        if reply is not None:
            reply.aborted = True
            if not reply.slot.done():
                reply.slot.set_result(None)

    def stats(self) -> EngineStats:
        """See `Engine.stats`."""
        running = [reply for reply in self._replies.values() if reply.slot.done()]
        return structs.replace(
            self._stats,
            running=len(running),
            waiting=len(self._replies) - len(running),
            kv_tokens_used=sum(len(r.request.prompt_token_ids) + r.num_generated for r in running),
        )

    async def close(self) -> None:
        """See `Engine.close`."""
        self._closed = True
        for request_id in tuple(self._replies):
            self.abort(request_id)

    def _fill_slots(self) -> None:
        running = [reply for reply in self._replies.values() if reply.slot.done()]
        waiting = [reply for reply in self._replies.values() if not reply.slot.done()]
        while waiting and len(running) < self._options.max_num_seqs:
            reply = self._turns.next(waiting, running)
            self._turns.take(reply.request.owner)
            reply.slot.set_result(None)
            waiting.remove(reply)
            running.append(reply)

    async def _run(self, reply: _Reply) -> AsyncGenerator[GenerationDelta, None]:
        request = reply.request
        self._count(prompt_tokens_total=len(request.prompt_token_ids))
        text = ReplyText(self._codec, request.params.stop)
        poisoned = POISON in self._codec.decode(request.prompt_token_ids)
        for token_id, last in _echo(request, max_new_tokens(request, self._context_length)):
            await asyncio.sleep(self._token_seconds)
            if reply.aborted:
                break
            if poisoned and reply.num_generated == 2:
                raise InternalError("The reply could not be computed.")
            reply.num_generated += 1
            self._count(generated_tokens_total=1, steps_total=1)
            shown, stopped = text.push(token_id)
            if last is not None and not stopped:
                rest, stopped = text.flush()
                shown += rest
            finish_reason: FinishReason | None = "stop" if stopped else last
            yield self._delta(reply, shown, token_id, finish_reason)
            if finish_reason is not None:
                return
        yield GenerationDelta(request.request_id, text.flush()[0], finish_reason="abort", usage=self._usage(reply))

    def _delta(self, reply: _Reply, text: str, token_id: int, finish_reason: FinishReason | None) -> GenerationDelta:
        params = reply.request.params
        return GenerationDelta(
            reply.request.request_id,
            text,
            (token_id,),
            logprobs=None if params.logprobs is None else (self._logprob(token_id, params.logprobs),),
            finish_reason=finish_reason,
            usage=self._usage(reply) if finish_reason is not None else None,
            trace=() if params.trace is None else (self._trace(reply, token_id),),
        )

    def _trace(self, reply: _Reply, token_id: int) -> TokenTrace:
        """An echo knows one candidate and takes no time."""
        token = self._codec.decode((token_id,))
        forced = reply.num_generated <= len(reply.request.params.forced_token_ids)
        stages = ("queue", "prefill") if reply.num_generated == 1 else ("decode",)
        seconds = dict.fromkeys((*stages, "sampling", "detokenize"), 0.0)
        return TokenTrace(token_id, token, forced, ("model",), (CandidateTrace(token_id, token, (1.0,)),), seconds)

    def _logprob(self, token_id: int, num_top: int) -> TokenLogprob:
        """An echo is certain of every token, so there is one candidate at most."""
        token = self._codec.decode((token_id,))
        token_bytes = self._codec.token_bytes(token_id)
        top = (TopLogprob(token_id, token, token_bytes, 0.0),) if num_top else ()
        return TokenLogprob(token_id, token, token_bytes, 0.0, top)

    @staticmethod
    def _usage(reply: _Reply) -> Usage:
        return Usage(len(reply.request.prompt_token_ids), reply.num_generated)

    def _count(self, **added: int) -> None:
        self._stats = structs.replace(
            self._stats, **{name: getattr(self._stats, name) + number for name, number in added.items()}
        )


def _echo(request: GenerationRequest, limit: int) -> Iterator[tuple[int, FinishReason | None]]:
    """The reply's token ids; the last one comes with the reason for which it is the last."""
    forced = request.params.forced_token_ids
    prompt = (*forced, *request.prompt_token_ids[len(forced) :])
    endless = request.params.ignore_eos
    num_tokens = limit if endless else min(limit, len(prompt))
    reason: FinishReason = "length" if endless or limit < len(prompt) else "stop"
    for number, token_id in enumerate(islice(cycle(prompt), num_tokens), start=1):
        yield token_id, reason if number == num_tokens else None
