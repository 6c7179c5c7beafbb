"""`mini-claude` with a leak in its worker, for the test that leaks are found: every request leaves memory behind."""

from typing import Final

from starlette.types import Receive, Scope, Send

from mini_claude.cli import main
from mini_claude.web.access import AccessMiddleware

LEAKED_BYTES: Final = 100_000

_kept: list[bytes] = []
_call = AccessMiddleware.__call__


async def _leak(self: AccessMiddleware, scope: Scope, receive: Receive, send: Send) -> None:
    _kept.append(b"x" * LEAKED_BYTES)
    await _call(self, scope, receive, send)


if __name__ == "__main__":
    AccessMiddleware.__call__ = _leak  # type: ignore[method-assign]
    main()
