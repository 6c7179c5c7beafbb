"""What processes say to each other: msgspec structs, as msgpack in the frames of connection.py.

Two conversations use this file. API workers talk to the supervisor (which model is where, load, unload, status)
and, for tokens, straight to the engine process that the supervisor named. Nothing here can execute: msgpack holds
values only. A frame that does not decode into one of these types is logged; from a worker it is dropped, to a worker it
ends the line.
"""

from typing import ClassVar, Literal

import msgspec

from mini_claude.errors import ErrorInfo
from mini_claude.types import (
    AdapterRef,
    EngineStats,
    GenerationDelta,
    GpuMemory,
    LoadOptions,
    Message,
    ModelInfo,
    ModelSpec,
    PromptTrace,
    SamplingParams,
)


class Struct(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Base of all frames: the class name as a tag, then the values in their order."""


# --- worker -> engine ------------------------------------------------------------------------------------------


class StartChat(Struct, frozen=True):
    """Render the messages and answer. With `drop_oldest`, whole oldest turns give way when the context is full."""

    request_id: str
    messages: tuple[Message, ...]
    params: SamplingParams
    drop_oldest: bool = False
    resumable: bool = False  # keep the reply's events for `Attach`, also while nobody listens
    adapter: AdapterRef | None = None  # answers in place of the model as it is; loaded when it is not yet
    answer: str | None = None  # read this text as the reply instead of choosing one
    answer_ended: bool = True  # and the end of its turn after it
    owner: str = ""  # as in `GenerationRequest`


class StartCompletion(Struct, frozen=True):
    """Continue a text (or token ids) without any template."""

    request_id: str
    prompt: str | tuple[int, ...]
    params: SamplingParams
    adapter: AdapterRef | None = None
    owner: str = ""


class Attach(Struct, frozen=True):
    """Send the events of a resumable reply after number `after`, then follow it live."""

    request_id: str
    after: int


class Detach(Struct, frozen=True):
    """This listener goes away; a resumable reply goes on for its grace period, any other one is aborted."""

    request_id: str


class Abort(Struct, frozen=True):
    """End the reply now with finish_reason "abort"."""

    request_id: str


class GetEngineStats(Struct, frozen=True):
    """Ask for `EngineReport`."""

    request_id: str


EngineInbound = StartChat | StartCompletion | Attach | Detach | Abort | GetEngineStats

# --- engine -> worker ------------------------------------------------------------------------------------------


class Accepted(Struct, frozen=True):
    """The request is queued; always the first answer, so that errors still have an HTTP status of their own."""

    request_id: str
    prompt_tokens: int
    dropped_messages: int = 0  # oldest messages left out, system message not counted
    prompt: PromptTrace | None = None  # where the request is traced


class ReplyEvent(Struct, frozen=True):
    """One delta of a reply; `number` counts from 1 without gaps."""

    request_id: str
    number: int
    delta: GenerationDelta


class Failed(Struct, frozen=True):
    """The request ended with an error; `kind` is the exception's class name in errors.py."""

    request_id: str
    kind: str
    error: ErrorInfo


class EngineReport(Struct, frozen=True):
    """Answer to `GetEngineStats`."""

    request_id: str
    stats: EngineStats
    gpus: tuple[GpuMemory, ...] = ()


EngineOutbound = Accepted | ReplyEvent | Failed | EngineReport

# --- worker -> supervisor --------------------------------------------------------------------------------------


ClientRole = Literal["worker", "page"]


class Hello(Struct, frozen=True):
    """A process introduces itself. The supervisor lives as long as a worker that did (pid and start time) does;
    the page is its own child.
    """

    pid: int
    started: float
    role: ClientRole = "worker"


class Goodbye(Struct, frozen=True):
    """A worker ends in good order."""

    pid: int


class AcquireModel(Struct, frozen=True):
    """Where is this model? Loads it when it is not loaded and answers `EngineAddress` when it is ready.

    A model that is loaded with other options is good enough, unless `exact`: then one with these options is loaded
    beside it and takes its place once it is ready; when that fails the loaded one stays. `gone` is an address that
    the caller has just seen die, in case the supervisor has not noticed yet.
    """

    spec: ModelSpec
    options: LoadOptions
    exact: bool = False
    gone: str | None = None


class UnloadModel(Struct, frozen=True):
    """Let running requests finish, then end the engine process. Answers `Done` when its memory is back."""

    name: str


class GetStatus(Struct, frozen=True):
    """Ask for `RuntimeStatus`."""


class GetMetrics(Struct, frozen=True):
    """Ask for `MetricsText`."""


class Publish(Struct, frozen=True):
    """Facts for the supervisor's metrics; see events.py."""

    facts: tuple["Fact", ...]


class Shutdown(Struct, frozen=True):
    """End the supervisor and all engines (tests and `mini-claude` commands)."""


class EngineReady(Struct, frozen=True):
    """Engine process -> supervisor, once: the model is loaded and the socket is bound."""

    model: str
    pid: int
    engine: str
    context_length: int
    dtype: str
    device: str


class EngineFailed(Struct, frozen=True):
    """Engine process -> supervisor, once: loading failed; the process ends after this."""

    model: str
    pid: int
    kind: str
    error: ErrorInfo


class EngineHeartbeat(Struct, frozen=True):
    """Engine process -> supervisor, about once a second; `idle_seconds` counts since the last request ended."""

    model: str
    pid: int
    idle_seconds: float
    stats: EngineStats
    gpus: tuple[GpuMemory, ...] = ()


SupervisorInbound = (
    Hello
    | Goodbye
    | AcquireModel
    | UnloadModel
    | GetStatus
    | GetMetrics
    | Publish
    | Shutdown
    | EngineReady
    | EngineFailed
    | EngineHeartbeat
)

# --- supervisor -> worker --------------------------------------------------------------------------------------


class Done(Struct, frozen=True):
    """The call succeeded and has nothing to say."""


class EngineAddress(Struct, frozen=True):
    """Where the engine process of a ready model listens."""

    address: str
    info: ModelInfo


class ProcessMemory(Struct, frozen=True):
    """Resident memory of one process of the product. role: supervisor | worker | engine:<model>."""

    role: str
    pid: int
    rss_bytes: int


class RuntimeStatus(Struct, frozen=True):
    """What runs now. `models` holds loaded, loading and failed ones; the catalog knows the rest."""

    models: tuple[ModelInfo, ...]
    processes: tuple[ProcessMemory, ...]
    engines: dict[str, EngineStats]
    gpus: tuple[GpuMemory, ...] = ()


class MetricsText(Struct, frozen=True):
    """The Prometheus exposition of the whole product."""

    text: str


class CallFailed(Struct, frozen=True):
    """The call raised; `kind` is the exception's class name in errors.py."""

    kind: str
    error: ErrorInfo


class Ending(Struct, frozen=True):
    """The supervisor ends because it was told to, or has nobody left; nobody needs to start another for its jobs."""


SupervisorOutbound = Done | EngineAddress | RuntimeStatus | MetricsText | CallFailed | Ending


# --- facts -----------------------------------------------------------------------------------------------------


class RequestServed(Struct, frozen=True):
    """An HTTP request or WebSocket ended. `route` is the route's template, never the path that was asked for."""

    method: str
    route: str
    status: int
    seconds: float


class ReplyFinished(Struct, frozen=True):
    """A reply ended. Times in seconds; `first_token_seconds` is None where no token came."""

    model: str
    finish_reason: str  # stop | length | abort | error
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    seconds: float
    first_token_seconds: float | None


Fact = RequestServed | ReplyFinished


class Envelope(msgspec.Struct, frozen=True):
    """A call to the supervisor: its number comes back with the answer."""

    call_id: int
    body: SupervisorInbound


class Answer(msgspec.Struct, frozen=True):
    """The supervisor's answer to the call of that number, or with number 0 what it says unasked."""

    call_id: int
    body: SupervisorOutbound


class Codec:
    """Encoders and decoders, made once."""

    encode: ClassVar = staticmethod(msgspec.msgpack.Encoder().encode)
    decode_engine_inbound: ClassVar = staticmethod(msgspec.msgpack.Decoder(EngineInbound).decode)
    decode_engine_outbound: ClassVar = staticmethod(msgspec.msgpack.Decoder(EngineOutbound).decode)
    decode_envelope: ClassVar = staticmethod(msgspec.msgpack.Decoder(Envelope).decode)
    decode_answer: ClassVar = staticmethod(msgspec.msgpack.Decoder(Answer).decode)
