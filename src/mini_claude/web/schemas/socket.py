"""Frames of /ws/chat: JSON objects with a `type`. What the server sends is described in routes/chat_socket.py."""

from typing import Annotated, Final, Literal

from pydantic import Field, TypeAdapter

from mini_claude.services.session_turn import SessionTurn
from mini_claude.web.schemas.sampling import Id, ModelName, SamplingFields, WireModel


class AuthFrame(WireModel):
    """The key or token, as the first frame of a client that could not send it in a header."""

    type: Literal["auth"]
    key: Annotated[str, Field(max_length=1024)]


class _TurnFrame(SamplingFields):
    """What every request for a reply may say."""

    model: ModelName | None = None
    system: str | None = None


class ChatFrame(_TurnFrame):
    """A user message. Without `session_id` a session is made; with `parent_id` it branches ("": a new first turn)."""

    type: Literal["chat"]
    message: Annotated[str, Field(min_length=1)]
    session_id: Id | None = None
    parent_id: Annotated[str, Field(max_length=128)] | None = None

    def session_turn(self) -> SessionTurn:
        """The turn, to be answered by a reply that outlives this connection."""
        return SessionTurn(
            session_id=self.session_id,
            content=self.message,
            params=self.sampling_params(),
            model=self.model,
            system=self.system,
            parent_id=self.parent_id,
            resumable=True,
            content_param="message",
        )


class RegenerateFrame(_TurnFrame):
    """Answer the user turn `parent_id` once more."""

    type: Literal["regenerate"]
    session_id: Id
    parent_id: Id

    def session_turn(self) -> SessionTurn:
        """As for a `ChatFrame`."""
        return SessionTurn(
            session_id=self.session_id,
            content=None,
            params=self.sampling_params(),
            model=self.model,
            system=self.system,
            parent_id=self.parent_id,
            resumable=True,
        )


class StopFrame(WireModel):
    """End a reply now; without `reply_id` all that this connection listens to."""

    type: Literal["stop"]
    reply_id: Id | None = None


class ResumeFrame(WireModel):
    """Send a reply's events after number `after`, then follow it live."""

    type: Literal["resume"]
    reply_id: Id
    after: Annotated[int, Field(ge=0, le=2**31)] = 0


FRAME_TYPES: Final = ("auth", "chat", "regenerate", "stop", "resume")
ClientFrame = AuthFrame | ChatFrame | RegenerateFrame | StopFrame | ResumeFrame
CLIENT_FRAME: TypeAdapter[ClientFrame] = TypeAdapter(Annotated[ClientFrame, Field(discriminator="type")])
