"""How often somebody may try to sign in: from one address, and under one name. Right answers count too."""

import ipaddress
import time
from collections.abc import Callable
from typing import Final

from anyio.to_thread import run_sync
from limits import RateLimitItem, RateLimitItemPerMinute
from limits.storage import Storage
from limits.strategies import FixedWindowRateLimiter

from mini_claude.errors import RateLimited
from mini_claude.services.limits import reachable, span

PER_NAME: Final = RateLimitItemPerMinute(10)
PER_ADDRESS: Final = RateLimitItemPerMinute(30)
_NAMESPACE: Final = "login"


class LoginAttempts:
    """Counts where requests are counted, so that all workers count together."""

    def __init__(self, windows: Storage, clock: Callable[[], float] = time.time) -> None:
        self._limiter = FixedWindowRateLimiter(windows)
        self._clock = clock

    async def admit(self, name: str, address: str | None) -> None:
        """Count an attempt. Raises `RateLimited`, for names that nobody has too, and `StorageError`.

        `address` None: of nobody's network, as the terminal's.
        """
        if address is not None:
            await run_sync(self._hit, PER_ADDRESS, "address", network_of(address))
        await run_sync(self._hit, PER_NAME, "name", name[:64])

    def _hit(self, item: RateLimitItem, *identifiers: str) -> None:
        with reachable():
            if self._limiter.hit(item, _NAMESPACE, *identifiers):
                return
            ends = self._limiter.get_window_stats(item, _NAMESPACE, *identifiers).reset_time
        seconds = max(ends - self._clock(), 1.0)
        raise RateLimited(
            f"There were too many attempts to sign in: try again in {span(seconds)}.",
            code="too_many_logins",
            retry_after=seconds,
            limit=item.amount,
        )


def network_of(address: str) -> str:
    """What one person has: an IPv4 address, or the /64 that every IPv6 customer gets at least."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address[:64]
    return str(ipaddress.ip_network((parsed, 64), strict=False)) if parsed.version == 6 else str(parsed)
