"""Feedback on replies as the native API takes and shows it."""

from dataclasses import asdict
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field

from mini_claude.data.records import Feedback, Preference, Rating
from mini_claude.services.feedback_datasets import FeedbackSource
from mini_claude.services.preference_rules import MAX_TEXT
from mini_claude.web.schemas.chat import ChatMessage
from mini_claude.web.schemas.datasets import DatasetPublic
from mini_claude.web.schemas.sampling import ModelName, WireModel


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


class FeedbackDataset(WireModel):
    """Body of POST /api/v1/datasets/from-feedback.

    rated: replies with a thumb up, and corrections. preferences: pairs for DPO, of comparisons and corrections.
    """

    model_config = ConfigDict(json_schema_extra={"examples": [{"name": "my-chats", "source": "rated"}]})

    name: Annotated[str, Field(min_length=1, max_length=64)]
    source: FeedbackSource


class MadeDatasetPublic(DatasetPublic):
    """A dataset made of feedback; `num_left_out` answers are not in it because they had been stopped or cut."""

    num_left_out: int


class AnswerPublic(WireModel):
    """One of the two answers; `model` with its version, `cut` where it ended before its end."""

    model: ModelName
    text: str
    cut: bool = False


class PreferenceCreate(WireModel):
    """Body of POST /api/v1/preferences."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "messages": [{"role": "user", "content": "Hello"}],
                    "chosen": {"model": "smollm2-135m", "text": "Hello! What can I do?", "cut": False},
                    "rejected": {"model": "smollm2-135m", "text": "Yes.", "cut": False},
                    "blind": True,
                }
            ]
        }
    )

    messages: list[ChatMessage]
    chosen: AnswerPublic
    rejected: AnswerPublic
    blind: bool = False


class PreferencePublic(BaseModel):
    """Two answers to the same messages, of which one is the better."""

    id: str
    messages: list[ChatMessage]
    chosen: AnswerPublic
    rejected: AnswerPublic
    blind: bool
    created_at: float

    @classmethod
    def of(cls, preference: Preference) -> Self:
        """From the record."""
        return cls(
            id=preference.id,
            messages=[ChatMessage(role=each.role, content=each.content) for each in preference.messages],
            chosen=AnswerPublic(**asdict(preference.chosen)),
            rejected=AnswerPublic(**asdict(preference.rejected)),
            blind=preference.blind,
            created_at=preference.created_at,
        )


class PreferenceList(BaseModel):
    """Newest first."""

    preferences: list[PreferencePublic]
