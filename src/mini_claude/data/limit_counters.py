"""Counts of what callers asked for, shared by all processes of a data directory: windows that end, and running replies.

An SQLite file of its own, so that counting never waits for a conversation that is being stored, nor that for it. A
power cut may cost the last counts (`synchronous=NORMAL`), never the file. Limits themselves are not known here.
"""

import fcntl
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Final

from limits.storage import Storage

from mini_claude.errors import StorageError

BUSY_SECONDS: Final = 10.0
_TABLES: Final = """
CREATE TABLE IF NOT EXISTS windows (key TEXT PRIMARY KEY, count INTEGER NOT NULL, ends REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS running (id TEXT PRIMARY KEY, owner TEXT NOT NULL, ends REAL NOT NULL) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS running_owner ON running (owner);
"""
_ADD: Final = """
INSERT INTO windows VALUES (:key, :amount, :now + :seconds) ON CONFLICT (key) DO UPDATE SET
    count = CASE WHEN ends <= :now THEN excluded.count ELSE count + excluded.count END,
    ends = CASE WHEN ends <= :now THEN excluded.ends ELSE ends END
RETURNING count
"""


class LimitCounters(Storage):
    """A storage for the limits package, and what that has none for: replies that run. Methods block.

    `file` None: in this process's memory. `clock` gives Unix time in seconds. Every method raises `StorageError`.
    """

    STORAGE_SCHEME = None  # made by its constructor only

    def __init__(self, file: Path | None, clock: Callable[[], float] = time.time) -> None:
        super().__init__()
        self._clock = clock
        self._lock = threading.Lock()
        with _storage_errors():
            if file is not None:
                file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._connection = sqlite3.connect(
                ":memory:" if file is None else file, BUSY_SECONDS, isolation_level=None, check_same_thread=False
            )
        try:
            with nullcontext() if file is None else _one_process(file):
                self._prepare()
        except StorageError:
            self._connection.close()
            raise

    def _prepare(self) -> None:
        with self._transaction() as connection:
            connection.executescript("PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;" + _TABLES)
            connection.execute("DELETE FROM windows WHERE ends <= ?", (self._clock(),))

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """The connection, for one statement or for several that begin and commit by themselves."""
        with self._lock, _storage_errors():
            yield self._connection

    @property
    def base_exceptions(self) -> type[Exception]:
        """What the limits package would have to translate: nothing is left."""
        return StorageError

    # --- windows, as the limits package asks for them ---

    def incr(self, key: str, expiry: int, amount: int = 1) -> int:
        """Add to the window's count, or begin a window of `expiry` seconds; the count after that."""
        values = {"key": key, "amount": amount, "seconds": expiry, "now": self._clock()}
        with self._transaction() as connection:
            return int(connection.execute(_ADD, values).fetchone()[0])

    def get(self, key: str) -> int:
        """The count of the window that is open; 0 where none is."""
        return int(self._open_window(key)[0])

    def get_expiry(self, key: str) -> float:
        """When the open window ends; now where none is open."""
        return self._open_window(key)[1]

    def _open_window(self, key: str) -> tuple[int, float]:
        now = self._clock()
        with self._transaction() as connection:
            row = connection.execute(
                "SELECT count, ends FROM windows WHERE key = ? AND ends > ?", (key, now)
            ).fetchone()
        return (0, now) if row is None else (row[0], row[1])

    def check(self) -> bool:
        """Whether the file answers."""
        with self._transaction() as connection:
            return bool(connection.execute("SELECT 1").fetchone() == (1,))

    def reset(self) -> int:
        """Forget all windows; how many there were."""
        with self._transaction() as connection:
            return connection.execute("DELETE FROM windows").rowcount

    def clear(self, key: str) -> None:
        """Forget one window."""
        with self._transaction() as connection:
            connection.execute("DELETE FROM windows WHERE key = ?", (key,))

    # --- replies that run ---

    def begin_replies(self, owner: str, ids: Sequence[str], limit: int, seconds: float) -> bool:
        """Note that these run for the next `seconds`, all of them or, where they would be more than `limit`, none."""
        now = self._clock()
        with self._transaction() as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                connection.execute("DELETE FROM running WHERE ends <= ?", (now,))
                fits = self._count(connection, owner, now) + len(ids) <= limit
                if fits:
                    connection.executemany(
                        "INSERT INTO running VALUES (?, ?, ?)", [(each, owner, now + seconds) for each in ids]
                    )
            except BaseException:
                connection.execute("ROLLBACK")
                raise
            connection.execute("COMMIT")
        return fits

    def prolong_replies(self, ids: Sequence[str], seconds: float) -> None:
        """Note that these still run, and will for the next `seconds`."""
        ends = self._clock() + seconds
        with self._transaction() as connection:
            connection.executemany("UPDATE running SET ends = ? WHERE id = ?", [(ends, each) for each in ids])

    def end_reply(self, reply_id: str) -> None:
        """Note that it runs no more."""
        with self._transaction() as connection:
            connection.execute("DELETE FROM running WHERE id = ?", (reply_id,))

    def num_replies(self, owner: str) -> int:
        """How many of the owner's run."""
        with self._transaction() as connection:
            return self._count(connection, owner, self._clock())

    @staticmethod
    def _count(connection: sqlite3.Connection, owner: str, now: float) -> int:
        query = "SELECT count(*) FROM running WHERE owner = ? AND ends > ?"
        return int(connection.execute(query, (owner, now)).fetchone()[0])

    def close(self) -> None:
        """Close the connection; counts in memory end here."""
        with self._transaction() as connection:
            connection.close()


@contextmanager
def _one_process(file: Path) -> Iterator[None]:
    # The first connection switches a new file to WAL, for which SQLite does not wait its turn.
    with _storage_errors(), file.with_name(file.name + ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def _storage_errors() -> Iterator[None]:
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        raise StorageError(
            f"The counts of limits cannot be kept ({error}): free some space and check that limits.db in data_dir is "
            "ours. It may be removed while the server is stopped, which sets all counts to zero."
        ) from error
