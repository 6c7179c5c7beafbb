"""The one way to a reply: a model that the caller may use, within the caller's limits, then to the engine."""

import msgspec

from mini_claude.runtime.messages import StartChat, StartCompletion
from mini_claude.runtime.runtime import ReplyStream, Runtime
from mini_claude.services.adapters import ServedModel
from mini_claude.services.identity import Caller
from mini_claude.services.limits import LimitService
from mini_claude.services.models import ModelService
from mini_claude.services.permit import LimitedReply, Permit


class ReplyStarter:
    """Starts replies for callers. Nobody else calls `Runtime.start`; tests/services/test_limits.py sees to it."""

    def __init__(self, runtime: Runtime, models: ModelService, limits: LimitService) -> None:
        self._runtime = runtime
        self._models = models
        self._limits = limits

    async def start(
        self, caller: Caller, served: ServedModel, request: StartChat | StartCompletion, permit: Permit | None = None
    ) -> ReplyStream:
        """The reply, once the engine has accepted it. `permit` was given before, to one of several of a request.

        Raises `Forbidden` for a model that the caller may not use, or not bring into memory, `RateLimited`, both
        before anything is loaded or generated, and what `Runtime.start` raises.
        """
        await self._models.require_may_answer(caller, served)
        if permit is None:
            (permit,) = await self._limits.admit(caller, (request.params.max_tokens,))
        if not caller.is_local:  # who is, is the only one
            request = msgspec.structs.replace(request, owner=caller.owner)
        try:
            stream = await self._runtime.start(served.spec, self._models.options(), request)
        except BaseException:
            await permit.settle(0)
            raise
        if not permit.is_limited:
            return stream
        reply = LimitedReply(stream, permit)
        try:
            await permit.reserve(stream.accepted.prompt_tokens)
        except BaseException:
            await reply.aclose()
            raise
        return reply
