"""Chat: replies without memory, and sessions whose turns are stored and branch.

A session's reply is accepted by the engine first and stored second, so that a refusal leaves no turns behind; what
the client was told of is on the disk before it is told. While a reply runs its turn has the status "running", and
whoever sees its end stores it: the worker that started it, or any other that listens.
"""

import asyncio
import contextlib
import time
import uuid
from collections.abc import Sequence

from anyio.to_thread import run_sync

from mini_claude.data.records import ChatSession, Conversation, ReplyEnding, Turn
from mini_claude.data.sessions import SessionRepository
from mini_claude.errors import EngineDied, InvalidRequest, MiniClaudeError, NotFound
from mini_claude.runtime.messages import StartChat, StartCompletion
from mini_claude.runtime.runtime import ReplyStream, Runtime
from mini_claude.services.adapters import ServedModel
from mini_claude.services.identity import Caller
from mini_claude.services.models import ModelService
from mini_claude.services.other_hosts import OtherHosts
from mini_claude.services.permit import Permit
from mini_claude.services.replies import ReplyStarter
from mini_claude.services.reply_meter import MeteredReply
from mini_claude.services.session_reply import SAVE_SECONDS, RunningReply, SessionReply, stored_record
from mini_claude.services.session_turn import (
    Draft,
    SessionTurn,
    check_turn,
    draft,
    new_session,
    require_continuable,
    require_storable,
    require_unicode,
    title_of,
)
from mini_claude.types import Message, SamplingParams, Usage


class ChatService:
    """Replies and sessions. It also raises what `ReplyStarter.start` raises, and `StorageError`."""

    def __init__(
        self,
        runtime: Runtime,
        models: ModelService,
        replies: ReplyStarter,
        sessions: SessionRepository,
        host: str | None = None,
    ) -> None:
        self._runtime = runtime
        self._models = models
        self._replies = replies
        self._sessions = sessions
        self._others = OtherHosts(sessions, host)
        self._opening: set[asyncio.Task[SessionReply]] = set()
        self._running: dict[str, RunningReply] = {}
        self._abandoned: set[asyncio.Task[None]] = set()

    # --- replies without a session ---

    async def reply(
        self,
        caller: Caller,
        model: str | None,
        messages: Sequence[Message],
        params: SamplingParams,
        permit: Permit | None = None,
    ) -> ReplyStream:
        """Answer a conversation that the client keeps. `permit`: one that `LimitService.admit` gave already."""
        if not messages:
            raise InvalidRequest("There are no messages; send at least one.", param="messages")
        for message in messages:
            require_unicode(message.content, "messages")
        require_unicode("".join(params.stop), "stop")
        served = await self._models.serving(caller, model)
        request = StartChat(uuid.uuid4().hex, tuple(messages), params, adapter=served.adapter)
        return await self._start(caller, served, request, permit)

    async def complete(
        self,
        caller: Caller,
        model: str | None,
        prompt: str | tuple[int, ...],
        params: SamplingParams,
        permit: Permit | None = None,
    ) -> ReplyStream:
        """Continue a text, or token ids, without a template. `permit` as for `reply`."""
        if isinstance(prompt, str):
            require_unicode(prompt, "prompt")
        require_unicode("".join(params.stop), "stop")
        served = await self._models.serving(caller, model)
        request = StartCompletion(uuid.uuid4().hex, prompt, params, served.adapter)
        return await self._start(caller, served, request, permit)

    async def _start(
        self, caller: Caller, served: ServedModel, request: StartChat | StartCompletion, permit: Permit | None = None
    ) -> ReplyStream:
        started = time.perf_counter()
        stream = await self._replies.start(caller, served, request, permit)
        return MeteredReply(stream, self._runtime, served.name, started)

    # --- replies in a session ---

    async def say(self, caller: Caller, turn: SessionTurn) -> SessionReply:
        """Answer a turn of a session; both turns are stored when this returns.

        Raises `NotFound` (session, turn, model), `InvalidRequest` and `Conflict` (the turn cannot stand there).
        """
        check_turn(turn)
        opening = asyncio.create_task(self._open(caller, turn))
        self._opening.add(opening)
        opening.add_done_callback(self._opening.discard)
        try:
            return await asyncio.shield(opening)
        except asyncio.CancelledError:
            self._keep(asyncio.create_task(_close_once_open(opening)))
            raise

    async def _open(self, caller: Caller, turn: SessionTurn) -> SessionReply:
        plan = await self._draft(caller, turn)
        served = await self._models.serving(caller, turn.model or plan.session.model)
        messages = plan.messages(plan.session.system if turn.system is None else turn.system)
        reply_id = uuid.uuid4().hex
        request = StartChat(reply_id, messages, turn.params, drop_oldest=True, resumable=True, adapter=served.adapter)
        stream = await self._start(caller, served, request)
        answer = Turn(
            id=reply_id,
            session_id=plan.session.id,
            parent_id=plan.user_turn.id,
            role="assistant",
            content="",
            status="running",
            created_at=time.time(),
            model=served.name,
            usage=Usage(stream.accepted.prompt_tokens, 0),
            dropped_turn_ids=tuple(each.id for each in plan.path[: stream.accepted.dropped_messages]),
            host=self._others.host,
        )
        # Events are read while the disk is slow, else the runtime would take us for a reader that has gone.
        stored = asyncio.Event()
        running = self._record(stream, answer, stored)
        try:
            await self._store(caller, plan, turn, answer)
        except BaseException:
            stream.abort()
            running.task.cancel()
            raise
        stored.set()
        return running.listen(0, needed=not turn.resumable)

    async def _draft(self, caller: Caller, turn: SessionTurn) -> Draft:
        if turn.session_id is None:
            return draft(new_session(caller.owner, turn), (), turn, is_new_session=True)
        session, path = await run_sync(self._sessions.branch, caller.owner, turn.session_id, turn.parent_id)
        return draft(session, path, turn, is_new_session=False)

    async def _store(self, caller: Caller, plan: Draft, turn: SessionTurn, answer: Turn) -> None:
        def begin() -> None:
            self._sessions.begin(
                caller.owner,
                (plan.user_turn, answer) if plan.is_new_user_turn else (answer,),
                create=plan.session if plan.is_new_session else None,
                model=answer.model if turn.model is not None else None,
                system=turn.system,
            )

        await run_sync(begin)

    def _record(self, stream: ReplyStream, turn: Turn, stored: asyncio.Event) -> RunningReply:
        async def save(ending: ReplyEnding) -> None:
            await stored.wait()
            await self._save(turn.id, ending)

        running = self._running[turn.id] = RunningReply(stream, turn, save)
        running.task.add_done_callback(lambda _: self._running.pop(turn.id))
        return running

    async def _save(self, reply_id: str, ending: ReplyEnding) -> None:
        await run_sync(self._sessions.finish, reply_id, ending)  # no effect when its ending was stored already

    async def resume(self, caller: Caller, reply_id: str, after: int) -> SessionReply:
        """The reply's events after that number, from whatever worker it was started in and however long ago.

        Of one that another host writes, when it has ended. Raises `NotFound`, `EngineDied` when the reply was lost with
        its engine, and `Unavailable` when the other host takes too long.
        """
        running = self._running.get(reply_id)
        turn = await run_sync(self._sessions.reply, caller.owner, reply_id)
        turn = await self._others.ended(caller.owner, turn)
        if turn.status == "running":
            running = running or await self._attach(turn)
            if running is not None:
                return running.listen(after, needed=False)
            turn = await run_sync(self._sessions.reply, caller.owner, reply_id)
        return SessionReply(turn, stored_record(turn), after)

    async def stop(self, caller: Caller, reply_id: str) -> None:
        """Abort a reply if it still runs, in whatever worker. Raises `NotFound`, `Conflict` where another host's."""
        turn = await run_sync(self._sessions.reply, caller.owner, reply_id)
        if turn.status == "running":
            await self._abort(turn)

    async def _abort(self, turn: Turn) -> None:
        self._others.require_ours(turn)
        running = self._running.get(turn.id) or await self._attach(turn)
        if running is not None:
            running.abort()

    async def _attach(self, turn: Turn) -> RunningReply | None:
        """Listen to a reply that another worker started. None: its engine does not know it, so it has ended."""
        spec = await self._models.resolve((turn.model or "").partition(":")[0] or None)
        try:
            # From the first event on: should the other worker die, this one stores the whole reply.
            stream = await self._runtime.attach(spec, self._models.options(), turn.id, 0)
        except NotFound:
            lost = EngineDied("The engine restarted while this reply was being written; ask again.")
            ending = ReplyEnding("", "error", turn.usage, (), (EngineDied.__name__, lost.info()))
            await self._save(turn.id, ending)
            return None
        if turn.id in self._running:  # two of our callers attached at once
            await stream.aclose()
            return self._running.get(turn.id)
        stored = asyncio.Event()
        stored.set()
        return self._record(stream, turn, stored)

    # --- sessions ---

    async def list(
        self, caller: Caller, limit: int, before: str | None = None, text: str | None = None
    ) -> Sequence[ChatSession]:
        """Most recently used first; `before` is the id of the last session of the previous page.

        With `text` only sessions in whose title or turns it occurs. Raises `InvalidRequest`.
        """
        if text is not None:
            require_storable(text, "q")
        return await run_sync(self._sessions.list, caller.owner, limit, before, text)

    async def get(self, caller: Caller, session_id: str) -> Conversation:
        """The session with every turn of every branch. Raises `NotFound`."""
        return await run_sync(self._sessions.conversation, caller.owner, session_id)

    async def rename(self, caller: Caller, session_id: str, title: str) -> ChatSession:
        """Give the session another title, cut as a first message would be. Raises `NotFound`, `InvalidRequest`."""
        require_storable(title, "title")
        line = title_of(title)
        if not line:
            raise InvalidRequest("The title is empty; write something.", param="title")
        return await run_sync(self._sessions.rename, caller.owner, session_id, line)

    async def select(self, caller: Caller, session_id: str, turn_id: str) -> ChatSession:
        """Let the conversation go on from this assistant turn. Raises `NotFound`, `InvalidRequest`, `Conflict`."""
        _, path = await run_sync(self._sessions.branch, caller.owner, session_id, turn_id)
        if not path:
            raise InvalidRequest("Give the id of an assistant turn.", param="head_turn_id")
        require_continuable(path[-1], "head_turn_id")
        return await run_sync(self._sessions.select, caller.owner, session_id, turn_id)

    async def delete(self, caller: Caller, session_id: str) -> None:
        """Delete the session with all its turns and stop its running replies. Raises `NotFound`."""
        for turn in await run_sync(self._sessions.delete, caller.owner, session_id):
            with contextlib.suppress(MiniClaudeError):  # the session is gone; an engine that is gone too needs no stop
                await self._abort(turn)

    # --- end ---

    def _keep(self, task: asyncio.Task[None]) -> None:
        self._abandoned.add(task)  # the event loop itself holds tasks weakly
        task.add_done_callback(self._abandoned.discard)

    async def aclose(self) -> None:
        """End the replies that this worker records and store them as far as they came."""
        if self._opening:  # their turns are about to be stored as running
            _, unopened = await asyncio.wait(self._opening, timeout=SAVE_SECONDS)
            for opening in unopened:
                opening.cancel()
        running = list(self._running.values())
        for reply in running:
            reply.abort()
        tasks = [*(reply.task for reply in running), *self._abandoned]
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=SAVE_SECONDS)
            for task in late:
                task.cancel()


async def _close_once_open(opening: asyncio.Task[SessionReply]) -> None:
    """The caller has gone while its reply was being accepted: a resumable one goes on, any other is aborted."""
    with contextlib.suppress(MiniClaudeError):  # there is nobody left to be told
        reply = await opening
        await reply.aclose()
