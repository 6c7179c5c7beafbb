"""The X-ray of a reply: what the model was given, how each token was chosen, and where the time went.

A new reply is generated and recorded. A stored one is read again: its text becomes tokens, and what the model would
have thought of each is recorded; how it was drawn at the time is not known.
"""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

from anyio.to_thread import run_sync
from msgspec import structs

from mini_claude.data.records import Turn
from mini_claude.data.sessions import SessionRepository
from mini_claude.errors import Conflict, InvalidRequest, Unavailable
from mini_claude.runtime.messages import StartChat
from mini_claude.runtime.runtime import ReplyStream
from mini_claude.services.identity import Caller
from mini_claude.services.models import ModelService
from mini_claude.services.replies import ReplyStarter
from mini_claude.services.session_turn import context_of_reply, require_unicode
from mini_claude.types import FinishReason, Message, PromptTrace, SamplingParams, TokenTrace, Usage

MAX_TOKENS: Final = 512  # of a traced reply
MAX_CANDIDATES: Final = 20
DEFAULT_CANDIDATES: Final = 10


@dataclass(frozen=True, slots=True)
class Xray:
    """A reply taken apart.

    `mode`: "generated" now, or "scored": a stored text was read. `exact` is False where the stored text's tokens are
    not as many as were generated at the time, so that they were surely others. `seconds` are sums by stage; what is
    not listed took no time of its own.
    """

    mode: Literal["generated", "scored"]
    model: str
    prompt: PromptTrace
    tokens: tuple[TokenTrace, ...]
    text: str
    finish_reason: FinishReason
    usage: Usage
    seconds: dict[str, float]
    exact: bool = True


class XrayService:
    """Makes X-rays; it also raises what `ReplyStarter.start` raises."""

    def __init__(self, models: ModelService, replies: ReplyStarter, sessions: SessionRepository) -> None:
        self._models = models
        self._replies = replies
        self._sessions = sessions

    async def of_messages(
        self,
        caller: Caller,
        model: str | None,
        messages: Sequence[Message],
        params: SamplingParams,
        *,
        candidates: int = DEFAULT_CANDIDATES,
        prefix_token_ids: Sequence[int] = (),
    ) -> Xray:
        """Answer the messages; the answer begins with `prefix_token_ids`, whatever would have been chosen.

        Raises `InvalidRequest` for more tokens than `MAX_TOKENS` or more candidates than `MAX_CANDIDATES`.
        """
        if not messages:
            raise InvalidRequest("There are no messages; send at least one.", param="messages")
        for message in messages:
            require_unicode(message.content, "messages")
        require_unicode("".join(params.stop), "stop")
        wanted = MAX_TOKENS if params.max_tokens is None else params.max_tokens
        if max(wanted, len(prefix_token_ids)) > MAX_TOKENS:
            raise InvalidRequest(f"An X-ray covers {MAX_TOKENS} tokens at most; lower max_tokens.", param="max_tokens")
        if prefix_token_ids and len(prefix_token_ids) >= wanted:
            raise InvalidRequest(
                f"prefix_token_ids leaves nothing to generate: it has {len(prefix_token_ids)} tokens and max_tokens is "
                f"{wanted}.",
                param="prefix_token_ids",
            )
        traced = replace(
            params, max_tokens=wanted, forced_token_ids=tuple(prefix_token_ids), trace=_checked(candidates)
        )
        return await self._run(caller, model, StartChat(uuid.uuid4().hex, tuple(messages), traced), "generated")

    async def of_reply(
        self,
        caller: Caller,
        reply_id: str,
        params: SamplingParams,
        *,
        candidates: int = DEFAULT_CANDIDATES,
        prefix_token_ids: Sequence[int] | None = None,
    ) -> Xray:
        """Read a stored reply of the caller's again, or, with `prefix_token_ids`, answer its question anew from there.

        Raises `NotFound`, `Conflict` for a reply that is still being written, `InvalidRequest` for an empty one.
        """
        turn = await run_sync(self._sessions.reply, caller.owner, reply_id)
        if turn.status == "running":
            raise Conflict("This reply is still being written; wait for its end.", param="reply_id")
        messages = await self._messages(caller, turn)
        if prefix_token_ids is not None:
            return await self.of_messages(
                caller, turn.model, messages, params, candidates=candidates, prefix_token_ids=prefix_token_ids
            )
        if not turn.content:
            raise InvalidRequest("This reply is empty: there is nothing to look into.", param="reply_id")
        ended = turn.finish_reason == "stop"
        traced = replace(params, trace=_checked(candidates), stop=())
        request = StartChat(uuid.uuid4().hex, messages, traced, answer=turn.content, answer_ended=ended)
        xray = await self._run(caller, turn.model, request, "scored")
        known = turn.usage.completion_tokens if turn.usage is not None else len(xray.tokens)
        return replace(xray, exact=len(xray.tokens) == known)

    async def _messages(self, caller: Caller, turn: Turn) -> tuple[Message, ...]:
        """What the reply was an answer to, without what had not fitted into its context."""
        session, path = await run_sync(self._sessions.branch, caller.owner, turn.session_id, turn.id)
        return context_of_reply(session.system, path)

    async def _run(
        self, caller: Caller, model: str | None, request: StartChat, mode: Literal["generated", "scored"]
    ) -> Xray:
        served = await self._models.serving(caller, model)
        request = structs.replace(request, adapter=served.adapter)
        stream = await self._replies.start(caller, served, request)
        try:
            return await _collect(stream, served.name, mode)
        finally:
            await stream.aclose()


def _checked(candidates: int) -> int:
    if not 1 <= candidates <= MAX_CANDIDATES:
        raise InvalidRequest(f"candidates is {candidates}: choose 1 to {MAX_CANDIDATES}.", param="candidates")
    return candidates


async def _collect(stream: ReplyStream, model: str, mode: Literal["generated", "scored"]) -> Xray:
    prompt = stream.accepted.prompt or PromptTrace((), {})
    texts: list[str] = []
    tokens: list[TokenTrace] = []
    async for event in stream:
        delta = event.delta
        texts.append(delta.text)
        tokens += delta.trace
        if delta.finish_reason is not None:
            seconds = dict(prompt.seconds)
            for token in tokens:
                for stage, spent in token.seconds.items():
                    seconds[stage] = seconds.get(stage, 0.0) + spent
            usage = delta.usage or Usage(0, 0)
            return Xray(mode, model, prompt, tuple(tokens), "".join(texts), delta.finish_reason, usage, seconds)
    raise Unavailable("The reply broke off; try again.", code="reply_aborted")
