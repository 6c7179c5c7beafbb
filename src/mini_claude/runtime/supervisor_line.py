"""An engine process's line to its supervisor: what it reports, nobody answers."""

from typing import Self

from mini_claude.runtime.connection import Connection, connect
from mini_claude.runtime.messages import Codec, Envelope, SupervisorInbound


class SupervisorLine:
    """One-way reports to the supervisor."""

    def __init__(self, connection: Connection) -> None:
        """Made by `open`."""
        self._connection = connection

    @classmethod
    async def open(cls, address: str) -> Self:
        """Raises `OSError` where no supervisor listens."""
        return cls(await connect(address, lambda _connection, _frame: None, lambda _connection: None))

    def __call__(self, message: SupervisorInbound) -> None:
        """Send without waiting."""
        self._connection.send(Codec.encode(Envelope(0, message)))

    async def aclose(self) -> None:
        """Flush and close."""
        await self._connection.aclose()
