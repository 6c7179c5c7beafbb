"""How much each caller may ask for, and how much of that is left.

A caller is let in before a reply begins and is charged when it ends. Windows are fixed: one begins with the first
request, counts, and ends. Requests count when they are let in. Of tokens a request takes what its reply may have at
most; when the reply has ended that is replaced by what the prompt and the reply had. So a caller is refused once
nothing is left, and the replies that run then may go beyond the limit by what they take more than they reserved.

A refusal leaves no trace in any count. Replies that run are counted on each host, where their engines are.
"""

import asyncio
import contextlib
import math
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Final

from anyio.to_thread import run_sync
from limits import RateLimitItem, RateLimitItemPerDay, RateLimitItemPerMinute
from limits.errors import ConfigurationError
from limits.errors import StorageError as UnreachableError
from limits.storage import RedisStorage, Storage

from mini_claude.data.limit_counters import LimitCounters
from mini_claude.data.records import Limits
from mini_claude.errors import InvalidRequest, MiniClaudeError, RateLimited, StorageError
from mini_claude.services.identity import Caller
from mini_claude.services.permit import UNLIMITED, Charge, Permit
from mini_claude.utils.config import Settings
from mini_claude.utils.logging import get_logger

RESERVED_TOKENS: Final = 512  # for a reply whose request names no max_tokens
REDIS_SECONDS: Final = 2.0  # for a server that does not answer
RUNNING_SECONDS: Final = 30.0  # so long the replies of a worker that was killed still count
PROLONG_SECONDS: Final = 10.0
CONCURRENT: Final = "concurrent_replies"
MAX_LIMIT: Final = 1_000_000_000_000  # of what a caller may ask for; beyond it a limit limits nothing
_WINDOWS: Final[Mapping[str, type[RateLimitItem]]] = {
    "requests_per_minute": RateLimitItemPerMinute,
    "requests_per_day": RateLimitItemPerDay,
    "tokens_per_minute": RateLimitItemPerMinute,
    "tokens_per_day": RateLimitItemPerDay,
}
_log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class LimitState:
    """What is left of a limit, and in how many seconds all of it is there again (0: when a reply ends, or already)."""

    name: str
    limit: int
    remaining: int
    reset_seconds: float


class LimitService:
    """Lets callers in. `windows` counts requests and tokens, `counters` the replies that run on this host."""

    def __init__(
        self,
        defaults: Limits,
        counters: LimitCounters,
        windows: Storage,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._defaults = asdict(defaults)
        self._counters = counters
        self._windows = windows
        self._clock = clock
        self._running: set[str] = set()
        self._prolonging: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def of(self, caller: Caller) -> Mapping[str, int]:
        """The limits that hold for the caller, by their names: the key's own before those of the settings."""
        own = ((name, getattr(caller.limits, name), default) for name, default in self._defaults.items())
        chosen = {name: default if limit is None else limit for name, limit, default in own}
        return {name: limit for name, limit in chosen.items() if limit}

    async def admit(self, caller: Caller, max_tokens: Sequence[int | None]) -> tuple[Permit, ...]:
        """Let one request in that wants a reply for each of `max_tokens`: a permit for each, to be settled.

        Raises `RateLimited`, and `StorageError` where the counts cannot be kept.
        """
        limits = self.of(caller)
        if not limits:
            return (UNLIMITED,) * len(max_tokens)
        taking = asyncio.create_task(run_sync(self._take, caller.owner, limits, max_tokens))
        try:
            permits = await asyncio.shield(taking)
        except asyncio.CancelledError:
            self._keep(asyncio.create_task(_give_back(taking)))
            raise
        self._note_running(permits)
        return permits

    async def states(self, caller: Caller) -> tuple[LimitState, ...]:
        """What is left of each limit of the caller's. Raises `StorageError`."""
        limits = self.of(caller)
        return await run_sync(self._states, caller.owner, limits) if limits else ()

    async def nearest(self, caller: Caller) -> LimitState | None:
        """The limit of which the smallest part is left; None where there is none. Raises `StorageError`."""
        states = await self.states(caller)
        return min(states, key=lambda state: state.remaining / state.limit) if states else None

    async def aclose(self) -> None:
        """Wait for what is being settled."""
        if self._prolonging is not None:
            self._prolonging.cancel()
            await asyncio.gather(self._prolonging, return_exceptions=True)
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # --- for permits ---

    async def change(self, charges: Sequence[Charge], num_tokens: int) -> None:
        """Add to token windows, as far as they are still open; goes on when the caller is cancelled."""
        await self._to_the_end(lambda: self._change_all(charges, num_tokens))

    async def end(self, charges: Sequence[Charge], num_tokens: int, reply_id: str | None) -> None:
        """The same when a reply ends; `reply_id` is what it runs under, if that is counted."""

        def settle() -> None:
            if reply_id is not None:
                self._counters.end_reply(reply_id)
            self._change_all(charges, num_tokens)

        if reply_id is not None:
            self._running.discard(reply_id)
        await self._to_the_end(settle)

    async def _to_the_end(self, work: Callable[[], None]) -> None:
        async def attempt() -> None:
            try:
                await run_sync(work)
            except StorageError as error:  # the reply itself is whole; what was reserved stays charged
                _log.warning("limits.not_settled", reason=error.message)

        task = asyncio.create_task(attempt())
        self._keep(task)
        await asyncio.shield(task)

    def _keep(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)  # the event loop itself holds tasks weakly
        task.add_done_callback(self._tasks.discard)

    # --- replies that run ---

    def _note_running(self, permits: Sequence[Permit]) -> None:
        self._running.update(permit.reply_id for permit in permits if permit.reply_id is not None)
        if self._running and (self._prolonging is None or self._prolonging.done()):
            self._prolonging = asyncio.create_task(self._prolong())

    async def _prolong(self) -> None:
        while self._running:
            await asyncio.sleep(PROLONG_SECONDS)
            try:
                await run_sync(self._counters.prolong_replies, tuple(self._running), RUNNING_SECONDS)
            except StorageError as error:
                _log.warning("limits.not_prolonged", reason=error.message)

    # --- in a thread ---

    def _take(self, owner: str, limits: Mapping[str, int], max_tokens: Sequence[int | None]) -> tuple[Permit, ...]:
        reserved = [RESERVED_TOKENS if each is None else each for each in max_tokens]
        ids: list[str | None] = [None] * len(reserved)
        charges: list[tuple[Charge, int]] = []
        try:
            for name, item in _items(limits):
                amount = sum(reserved) if name.startswith("tokens") else 1
                charges.append((self._add(owner, name, item, amount), amount))
            if CONCURRENT in limits:
                new = [uuid.uuid4().hex for _ in reserved]
                self._begin(owner, limits[CONCURRENT], new)
                ids = [*new]
        except MiniClaudeError:
            for charge, amount in charges:
                self._change(charge, -amount)
            raise
        tokens = tuple(charge for charge, _ in charges if charge.name.startswith("tokens"))
        return tuple(Permit(self, tokens, num, each) for num, each in zip(reserved, ids, strict=True))

    def _add(self, owner: str, name: str, item: RateLimitItem, amount: int) -> Charge:
        with reachable():
            key = item.key_for(owner, name)
            before = self._windows.incr(key, item.get_expiry(), amount) - amount
            charge = Charge(name, key, item.get_expiry(), self._windows.get_expiry(key))
        if before >= item.amount:
            self._change(charge, -amount)
            raise self._refusal(name, item.amount, charge.ends - self._clock())
        return charge

    def _begin(self, owner: str, limit: int, ids: Sequence[str]) -> None:
        if not self._counters.begin_replies(owner, ids, limit, RUNNING_SECONDS):
            many = _many(limit, "reply", "replies")
            raise RateLimited(
                f"The limit of {many} at once is reached: wait for one to end, or ask for fewer.",
                retry_after=1.0,
                limit=limit,
            )

    @staticmethod
    def _refusal(name: str, limit: int, seconds: float) -> RateLimited:
        what, _, per = name.partition("_per_")
        return RateLimited(
            f"The limit of {_many(limit, what[:-1], what)} a {per} is reached: try again in {span(seconds)}.",
            retry_after=max(seconds, 1.0),
            limit=limit,
        )

    def _change_all(self, charges: Sequence[Charge], amount: int) -> None:
        for charge in charges:
            self._change(charge, amount)

    def _change(self, charge: Charge, amount: int) -> None:
        """Add to the window that the charge began in; what has ended since is left alone."""
        with reachable():
            ends = self._windows.get_expiry(charge.key)
            # Redis gives whole seconds, so that the same window's end is not always the same number.
            if amount and self._clock() < ends and abs(ends - charge.ends) < charge.seconds / 2:
                self._windows.incr(charge.key, charge.seconds, amount)

    def _states(self, owner: str, limits: Mapping[str, int]) -> tuple[LimitState, ...]:
        states: list[LimitState] = []
        for name, item in _items(limits):
            key = item.key_for(owner, name)
            with reachable():
                used, ends = self._windows.get(key), self._windows.get_expiry(key)
            left = min(max(item.amount - used, 0), item.amount)
            states.append(LimitState(name, item.amount, left, max(ends - self._clock(), 0.0)))
        if (limit := limits.get(CONCURRENT)) is not None:
            states.append(LimitState(CONCURRENT, limit, max(limit - self._counters.num_replies(owner), 0), 0.0))
        return tuple(states)


def default_limits(settings: Settings) -> Limits:
    """What the settings say for callers without limits of their own."""
    return Limits(
        requests_per_minute=settings.limit_requests_per_minute,
        requests_per_day=settings.limit_requests_per_day,
        tokens_per_minute=settings.limit_tokens_per_minute,
        tokens_per_day=settings.limit_tokens_per_day,
        concurrent_replies=settings.limit_concurrent_replies,
    )


def redis_windows(url: str) -> Storage:
    """Counts that several hosts share. Raises `InvalidRequest` for an address that cannot be one of Redis."""
    try:
        if url.partition("://")[0] not in ("redis", "rediss", "redis+unix"):
            raise ValueError("it is no address of Redis")
        return RedisStorage(
            url, wrap_exceptions=True, socket_timeout=REDIS_SECONDS, socket_connect_timeout=REDIS_SECONDS
        )
    except (ConfigurationError, ValueError) as error:
        raise InvalidRequest(
            f"limits_url is not usable ({error}): use redis://host:6379/0, after `pip install 'mini-claude[redis]'`, "
            "or leave it out to count in a file.",
            param="limits_url",
        ) from error


def check_limits(limits: Limits) -> None:
    """Raise `InvalidRequest` for what cannot be a limit of somebody's own."""
    for name, value in asdict(limits).items():
        if value is not None and not 0 <= value <= MAX_LIMIT:
            raise InvalidRequest(
                f"{name} is {value}: give 0 (no limit) to {MAX_LIMIT}, or leave it out for what the settings say.",
                param=name,
            )


def span(seconds: float) -> str:
    """A time to wait, rounded up, as people say it."""
    for unit, size in (("hour", 3600), ("minute", 60)):
        if seconds > 2 * size:
            return f"{math.ceil(seconds / size)} {unit}s"
    return _many(max(1, math.ceil(seconds)), "second", "seconds")


def _many(num: int, one: str, more: str) -> str:
    return f"{num} {one if num == 1 else more}"


def _items(limits: Mapping[str, int]) -> Iterator[tuple[str, RateLimitItem]]:
    for name, kind in _WINDOWS.items():
        if name in limits:
            yield name, kind(limits[name])


async def _give_back(taking: "asyncio.Task[tuple[Permit, ...]]") -> None:
    """The caller has gone while it was being let in."""
    with contextlib.suppress(MiniClaudeError):  # it was not: there is nothing to give back, and nobody to be told
        for permit in await taking:
            await permit.settle(0)


@contextlib.contextmanager
def reachable() -> Iterator[None]:
    """Raise `StorageError` where the counts' server does not answer."""
    try:
        yield
    except UnreachableError as error:
        raise StorageError(
            "The counts of limits cannot be reached: see that the server of limits_url runs, then try again."
        ) from error
