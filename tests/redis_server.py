"""A real Redis that tests start for themselves."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .own_server import OwnServer, own_folder, program, takes_connections


class Redis(OwnServer):
    """It listens on a Unix socket only and keeps nothing on the disk: a stop forgets all counts."""

    def __init__(self, folder: Path) -> None:
        self._socket = folder / "redis.sock"
        options = ("--port", "0", "--unixsocket", str(self._socket), "--save", "", "--appendonly", "no")
        command: list[str | Path] = [program("redis-server"), *options]
        super().__init__(folder, command, lambda: takes_connections(self._socket), signal.SIGTERM)

    @property
    def url(self) -> str:
        """For limits_url."""
        return f"redis+unix://{self._socket}"


@contextmanager
def redis_server() -> Iterator[Redis]:
    with own_folder() as folder:
        server = Redis(folder)
        server.start()
        try:
            yield server
        finally:
            server.stop()
