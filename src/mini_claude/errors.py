"""Every error that Mini-Claude raises on purpose, as one tree.

    MiniClaudeError
    ├── InvalidRequest             the client must change what it sends
    │   ├── ContextLengthExceeded
    │   ├── UnsupportedRole
    │   ├── IdempotencyKeyReused
    │   └── UnsupportedExport
    ├── NotFound                   model, session, turn, reply
    ├── Conflict                   the thing is not in a state that allows this
    │   └── TrainerOutdated
    ├── Unauthorized / Forbidden
    ├── PayloadTooLarge
    ├── RateLimited                the caller's own limit is reached; another caller's is not
    ├── Unavailable                try again: full, loading, shutting down, engine gone
    │   ├── Overloaded
    │   └── EngineDied
    ├── ModelLoadError             the model cannot be loaded as it stands
    │   └── UnsafeModelFile
    ├── StorageError               disk full, database gone
    └── InternalError              our fault: a request id leads to the log

Each error carries a stable `code`, a sentence for a person that names the fix, and the offending `param` where
there is one. It crosses processes as `ErrorInfo` and is mapped to HTTP in one place (`web/error_handlers.py`).
"""

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, slots=True)
class ErrorInfo:
    """An error as a plain value: what crosses a process boundary."""

    code: str
    message: str
    param: str | None = None
    retry_after: float | None = None  # seconds


class MiniClaudeError(Exception):
    """Base of the tree. `code` may be refined per instance; the class decides the HTTP status."""

    default_code: ClassVar[str] = "internal_error"

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or self.default_code
        self.param = param
        self.retry_after = retry_after

    def info(self) -> ErrorInfo:
        """The plain value for the wire."""
        return ErrorInfo(self.code, self.message, self.param, self.retry_after)


class InvalidRequest(MiniClaudeError):
    """A value that the client can correct."""

    default_code = "invalid_value"


class ContextLengthExceeded(InvalidRequest):
    """Prompt plus max_tokens do not fit; the message holds the numbers."""

    default_code = "context_length_exceeded"


class UnsupportedRole(InvalidRequest):
    """The model has no such role (DialoGPT has no system role)."""

    default_code = "unsupported_role"


class IdempotencyKeyReused(InvalidRequest):
    """The key of an earlier request came with another body."""

    default_code = "idempotency_key_reused"


class UnsupportedExport(InvalidRequest):
    """A file format that does not have what this model or adapter needs; the message names another one."""

    default_code = "unsupported_export"


class NotFound(MiniClaudeError):
    """The named thing does not exist, or not for this caller."""

    default_code = "not_found"


class Conflict(MiniClaudeError):
    """The named thing exists but its state forbids the operation."""

    default_code = "conflict"


class TrainerOutdated(Conflict):
    """A trainer process no longer holds its job: it must end and touch nothing."""

    default_code = "trainer_outdated"


class Unauthorized(MiniClaudeError):
    """No valid credentials."""

    default_code = "invalid_api_key"


class Forbidden(MiniClaudeError):
    """Valid credentials (or an address or origin) that may not do this."""

    default_code = "forbidden"


class PayloadTooLarge(MiniClaudeError):
    """The body is over the limit that the message names."""

    default_code = "payload_too_large"


class RateLimited(MiniClaudeError):
    """A limit of the caller's is reached. `retry_after` says when it is free again, in seconds.

    `limit` is how much the limit allows in all, None where only the error's text crossed a process boundary.
    """

    default_code = "rate_limit_exceeded"

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after: float | None = None,
        limit: int | None = None,
    ) -> None:
        super().__init__(message, code=code, param=param, retry_after=retry_after)
        self.limit = limit


class Unavailable(MiniClaudeError):
    """A passing condition; `retry_after` says when to come back."""

    default_code = "unavailable"


class Overloaded(Unavailable):
    """The queue is full."""

    default_code = "overloaded"


class EngineDied(Unavailable):
    """The process that was generating this reply is gone; a new one is being started."""

    default_code = "engine_died"


class ModelLoadError(MiniClaudeError):
    """The model cannot be loaded: files missing or broken, too little memory, unknown architecture."""

    default_code = "model_load_failed"


class UnsafeModelFile(ModelLoadError):
    """The folder holds code, pickles or anything else that loading could execute."""

    default_code = "unsafe_model_file"


class StorageError(MiniClaudeError):
    """The disk or the database refused."""

    default_code = "storage_error"


class StorageUnavailable(StorageError):
    """The database is away or busy: the same call can succeed in a moment."""

    default_code = "storage_unavailable"


class InternalError(MiniClaudeError):
    """A bug of ours; the message is for the client and gives nothing away."""

    default_code = "internal_error"


def _tree(cls: type[MiniClaudeError]) -> list[type[MiniClaudeError]]:
    return [cls, *(leaf for child in cls.__subclasses__() for leaf in _tree(child))]


def from_info(info: ErrorInfo, kind: str) -> MiniClaudeError:
    """Rebuild the exception named `kind` (a class name of this file) on the other side of a process boundary."""
    for cls in _tree(MiniClaudeError):
        if cls.__name__ == kind:
            return cls(info.message, code=info.code, param=info.param, retry_after=info.retry_after)
    return InternalError(info.message, code=info.code, param=info.param, retry_after=info.retry_after)
