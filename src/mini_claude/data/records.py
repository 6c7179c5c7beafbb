"""What the repositories hand out: immutable copies of rows, free of SQLAlchemy. All times are Unix time."""

from dataclasses import dataclass
from typing import Any, Literal

from mini_claude.errors import ErrorInfo
from mini_claude.training.arguments import JobSpec
from mini_claude.training.examples import Container, DatasetFormat, RowProblem
from mini_claude.types import Message, Usage

TurnStatus = Literal["running", "done", "failed"]
TurnRole = Literal["user", "assistant"]
Rating = Literal["up", "down"]
KeyRole = Literal["admin", "user"]
KeyState = Literal["active", "expired", "revoked"]
UserState = Literal["active", "disabled"]
JobState = Literal["pending", "running", "completed", "failed", "cancelled", "interrupted"]


@dataclass(frozen=True, slots=True)
class Limits:
    """How much one caller may ask for. None: what the settings say, 0: no limit.

    Requests are those for replies; tokens are the prompt's and the reply's together.
    """

    requests_per_minute: int | None = None
    requests_per_day: int | None = None
    tokens_per_minute: int | None = None
    tokens_per_day: int | None = None
    concurrent_replies: int | None = None


NO_LIMITS = Limits()


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key as its owner may see it later: `prefix` is its first characters, the rest is stored nowhere.

    An admin's key may manage the server for everybody, a user's only what is its own. `expires_at` None: never.
    `limits` are the key's own.
    """

    id: str
    name: str
    prefix: str
    created_at: float
    role: KeyRole
    expires_at: float | None = None
    revoked_at: float | None = None
    limits: Limits = NO_LIMITS

    def state(self, now: float) -> KeyState:
        """Whether it opens anything; one that was revoked stays so, whenever it would have expired."""
        if self.revoked_at is not None:
            return "revoked"
        return "active" if self.expires_at is None or now < self.expires_at else "expired"


@dataclass(frozen=True, slots=True)
class User:
    """Somebody who signs in with a password. `generation` is of the tokens that count; `limits` are the user's own."""

    id: str
    name: str
    role: KeyRole
    created_at: float
    disabled_at: float | None = None
    generation: int = 0
    limits: Limits = NO_LIMITS

    @property
    def state(self) -> UserState:
        """Whether this user may sign in."""
        return "active" if self.disabled_at is None else "disabled"


@dataclass(frozen=True, slots=True)
class ChatSession:
    """A conversation without its turns. The path from the root to `head_turn_id` is the current branch."""

    id: str
    owner: str
    title: str
    model: str | None
    system: str | None
    head_turn_id: str | None
    created_at: float
    updated_at: float


@dataclass(frozen=True, slots=True)
class Turn:
    """One node of a session's tree; `parent_id` None stands before everything.

    Of an assistant turn: `id` is also the reply's id and the engine's request id. `delta_ends[i]` is the length of
    `content` after event i + 1, which is what makes a finished reply replayable. `finish_reason` is stop, length,
    abort or error; `error` is (exception class, error) of a failed reply.
    """

    id: str
    session_id: str
    parent_id: str | None
    role: TurnRole
    content: str
    status: TurnStatus
    created_at: float
    model: str | None = None
    finish_reason: str | None = None
    usage: Usage | None = None
    delta_ends: tuple[int, ...] = ()
    dropped_turn_ids: tuple[str, ...] = ()  # turns of the path that did not fit into the context
    error: tuple[str, ErrorInfo] | None = None
    host: str | None = None  # whose engine writes it; None: the only one


@dataclass(frozen=True, slots=True)
class Conversation:
    """A session with all its turns, every branch, in the order in which they were begun."""

    session: ChatSession
    turns: tuple[Turn, ...]

    def path_to(self, turn_id: str | None) -> tuple[Turn, ...]:
        """The turns from the root to this one; none for None."""
        by_id = {turn.id: turn for turn in self.turns}
        path: list[Turn] = []
        turn = by_id.get(turn_id or "")
        while turn is not None:
            path.append(turn)
            turn = by_id.get(turn.parent_id or "")
        return tuple(reversed(path))


@dataclass(frozen=True, slots=True)
class ReplyEnding:
    """How a reply ended: what turns a running assistant turn into a done or failed one."""

    content: str
    finish_reason: str
    usage: Usage | None
    delta_ends: tuple[int, ...]
    error: tuple[str, ErrorInfo] | None = None

    @property
    def becomes_head(self) -> bool:
        """Whether the conversation goes on from this reply: an empty one that was cut off is left aside."""
        return bool(self.content) or self.finish_reason in ("stop", "length")


@dataclass(frozen=True, slots=True)
class Feedback:
    """What somebody thinks of a reply; `correction` is the text that the assistant should have given."""

    reply_id: str
    rating: Rating | None
    correction: str | None
    updated_at: float


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model said. `model` is its reference, an adapter's with its version; `cut`: it ended before its end."""

    model: str
    text: str
    cut: bool


@dataclass(frozen=True, slots=True)
class Preference:
    """Two answers to the same messages, of which `owner` chose one; `blind`: without seeing which model said what."""

    id: str
    owner: str
    messages: tuple[Message, ...]
    chosen: Answer
    rejected: Answer
    blind: bool
    created_at: float


@dataclass(frozen=True, slots=True)
class Job:
    """A training job. An interrupted one lost its trainer and waits, like a pending one, for the next.

    `attempts` counts trainers started since the last checkpoint. `progress` is what the last progress event said.
    `pid` and `pid_started` identify the trainer that runs it; None while it is being started.
    """

    id: str
    owner: str
    state: JobState
    spec: JobSpec
    created_at: float
    started_at: float | None
    ended_at: float | None
    attempts: int
    token: str | None
    pid: int | None
    pid_started: float | None
    cancel_requested: bool
    progress: dict[str, Any]
    error: tuple[str, ErrorInfo] | None
    adapter: str | None  # "model:name@version" once it is completed


@dataclass(frozen=True, slots=True)
class JobEvent:
    """Something that happened to a job; `number` counts from 1 without gaps."""

    number: int
    type: str
    data: dict[str, Any]
    created_at: float


@dataclass(frozen=True, slots=True)
class AdapterVersion:
    """A version of an adapter, model:name@version. `facts` holds base revision, data hash, arguments and metrics."""

    model: str
    name: str
    version: int
    owner: str
    folder: str  # name of its folder among the adapters
    job_id: str | None
    facts: dict[str, Any]
    certificate: dict[str, Any] | None
    created_at: float

    @property
    def reference(self) -> str:
        """What clients call it."""
        return f"{self.model}:{self.name}@{self.version}"


@dataclass(frozen=True, slots=True)
class DefaultChoice:
    """What was made the default model, and when."""

    reference: str
    created_at: float


@dataclass(frozen=True, slots=True)
class Dataset:
    """Training data under a name. `num_broken` of all `num_rows` rows are no examples; `problems` has the first."""

    name: str
    owner: str
    sha256: str  # of the file's content
    file_name: str  # what the client called the file; only shown
    container: Container
    format: DatasetFormat
    num_bytes: int
    num_rows: int
    num_broken: int
    problems: tuple[RowProblem, ...]
    created_at: float
