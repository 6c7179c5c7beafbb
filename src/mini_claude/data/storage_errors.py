"""What a database says when it refuses, as one sentence with the way out."""

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Final

from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from mini_claude.errors import InvalidRequest, StorageError, StorageUnavailable
from mini_claude.utils.logging import get_logger

BUSY_SECONDS: Final = 30
_FULL: Final = "The disk is full; free some space, nothing that was stored is lost."
_UNREACHABLE: Final = (
    "The database server cannot be reached or does not let us in: see that PostgreSQL runs, that its max_connections "
    "are not used up and that database_url is right, then try again."
)
_BUSY: Final = "The database was busy with something that excludes this; try again."

_DISK_FULL: Final = partial(StorageError, code="disk_full")

# What SQLite says, the error that we raise, and what the person is told.
_REASONS: Final[Sequence[tuple[str, Callable[[str], StorageError], str]]] = (
    ("disk is full", _DISK_FULL, _FULL),
    ("no space left", _DISK_FULL, _FULL),
    ("no such table", StorageError, "The database was removed while the server ran; restart the server."),
    ("unable to open", StorageError, "The database cannot be opened; check that its folder exists and is ours."),
    ("readonly", StorageError, "The database is read-only; check the permissions of its file and folder."),
    ("locked", StorageUnavailable, f"The database stayed busy for {BUSY_SECONDS} seconds; try again."),
    ("not a database", StorageError, "The database file is damaged; restore a copy or move it away."),
    ("malformed", StorageError, "The database file is damaged; restore a copy or move it away."),
)
# The same for PostgreSQL, which speaks many languages: by SQLSTATE, or the class that is its beginning.
_STATES: Final[Sequence[tuple[str, Callable[[str], StorageError], str]]] = (
    ("53100", _DISK_FULL, _FULL),
    ("42P01", StorageError, "The tables were removed while the server ran; restart the server."),
    ("42501", StorageError, "PostgreSQL forbids it: the user in database_url must own the database and its tables."),
    ("25006", StorageError, "The database is read-only; let database_url lead to the primary server."),
    ("40", StorageUnavailable, _BUSY),
    ("08", StorageUnavailable, _UNREACHABLE),
    ("28", StorageError, _UNREACHABLE),
    ("3D", StorageError, _UNREACHABLE),
    ("57P", StorageUnavailable, _UNREACHABLE),
)

_log = get_logger(__name__)


@contextmanager
def storage_errors() -> Iterator[None]:
    """Raise `StorageError`, or `InvalidRequest` for a text that cannot be stored, in place of what the database raises.

    A violated constraint stays SQLAlchemy's `IntegrityError`, for the repository to name.
    """
    try:
        yield
    except IntegrityError:
        raise
    except UnicodeEncodeError as error:  # JSON can spell half of a surrogate pair, no database can hold it
        raise InvalidRequest("A text holds half of a surrogate pair; send valid Unicode.") from error
    except PoolTimeoutError as error:
        raise StorageUnavailable("All connections to the database are in use; try again.") from error
    except DBAPIError as error:
        raise _translated(error) from error
    except SQLAlchemyError as error:
        _log.error("database.refused", error=type(error).__name__)
        raise StorageError("The database refused; the log of the server says why.") from error


def _translated(error: DBAPIError) -> InvalidRequest | StorageError:
    said = str(error.orig)
    if "NUL (0x00)" in said:  # of psycopg, which no server translates
        return InvalidRequest("A text holds the character U+0000, which the database cannot store; leave it out.")
    state = getattr(error.orig, "sqlstate", None)  # of psycopg, which need not be installed
    if state in ("22001", "22003"):
        return InvalidRequest("A text is longer, or a number larger, than what can be stored; send less.")
    if isinstance(error.orig, sqlite3.Error):
        for fragment, refusal, sentence in _REASONS:
            if fragment in said.lower():
                return refusal(sentence)
    else:
        if state is None and isinstance(error, OperationalError):  # there is, or was suddenly, no connection
            _log.error("database.unreachable", reason=said)
            return StorageUnavailable(_UNREACHABLE)
        for beginning, refusal, sentence in _STATES:
            if (state or "").startswith(beginning):
                return refusal(sentence)
    # Not what it says, which may quote what somebody wrote.
    _log.error("database.refused", error=type(error.orig).__name__, state=state)
    return StorageError("The database refused; the log of the server says why.")


def hide_details(context: ExceptionContext) -> None:
    """Listener: what PostgreSQL adds to an error under DETAIL and CONTEXT quotes rows, which must not reach the log."""
    for error in (context.original_exception, context.sqlalchemy_exception):
        if error is not None and error.args and isinstance(error.args[0], str):
            error.args = (error.args[0].partition("\nDETAIL:")[0].partition("\nCONTEXT:")[0], *error.args[1:])
