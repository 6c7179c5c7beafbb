"""Feedback on replies as the native API takes and shows it."""

from typing import Self

from pydantic import BaseModel, ConfigDict, Field

from mini_claude.data.records import Feedback, Rating
from mini_claude.services.preference_rules import MAX_TEXT
from mini_claude.web.schemas.sampling import WireModel


class FeedbackChange(WireModel):
    """Body of PUT /api/v1/chat/feedback/{reply_id}; with neither field the feedback is taken away."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"rating": "up"}, {"rating": "down", "correction": "It is Paris."}]}
    )

    rating: Rating | None = Field(None, description="A thumb.")
    correction: str | None = Field(
        None, max_length=MAX_TEXT, description="The text that the assistant should have given."
    )


class FeedbackPublic(BaseModel):
    """What the caller thinks of a reply."""

    reply_id: str
    rating: Rating | None
    correction: str | None
    updated_at: float

    @classmethod
    def of(cls, feedback: Feedback) -> Self:
        """From the record."""
        return cls(
            reply_id=feedback.reply_id,
            rating=feedback.rating,
            correction=feedback.correction,
            updated_at=feedback.updated_at,
        )


class FeedbackList(BaseModel):
    """All feedback in a session."""

    feedback: list[FeedbackPublic]
