"""The native API's feedback: a thumb for a reply, or the answer that should have been given."""

from typing import Annotated

from fastapi import APIRouter, Depends, Query

from mini_claude.data.records import Answer
from mini_claude.types import Message
from mini_claude.web.deps import CallerDep, ServicesDep, caller_of
from mini_claude.web.schemas.datasets import DatasetPublic
from mini_claude.web.schemas.errors import errors
from mini_claude.web.schemas.feedback import (
    FeedbackChange,
    FeedbackDataset,
    FeedbackList,
    FeedbackPublic,
    MadeDatasetPublic,
    PreferenceCreate,
    PreferenceList,
    PreferencePublic,
)
from mini_claude.web.schemas.sampling import Id

router = APIRouter(prefix="/api/v1/chat", tags=["feedback"], dependencies=[Depends(caller_of)])
preferences_router = APIRouter(prefix="/api/v1/preferences", tags=["feedback"], dependencies=[Depends(caller_of)])
datasets_router = APIRouter(prefix="/api/v1/datasets", tags=["feedback"], dependencies=[Depends(caller_of)])


@router.put("/feedback/{reply_id}", responses=errors(404, 409))
async def rate_reply(reply_id: str, body: FeedbackChange, services: ServicesDep, caller: CallerDep) -> FeedbackPublic:
    """Say what you think of a reply of yours; it takes the place of what you thought before."""
    return FeedbackPublic.of(
        await services.feedback.rate(caller, reply_id, rating=body.rating, correction=body.correction)
    )


@router.get("/sessions/{session_id}/feedback", responses=errors(404))
async def session_feedback(session_id: str, services: ServicesDep, caller: CallerDep) -> FeedbackList:
    """All feedback in a session, in the order of its turns."""
    given = await services.feedback.of_session(caller, session_id)
    return FeedbackList(feedback=[FeedbackPublic.of(each) for each in given.values()])


@preferences_router.post("", status_code=201, responses=errors(409))
async def prefer(body: PreferenceCreate, services: ServicesDep, caller: CallerDep) -> PreferencePublic:
    """Keep which of two answers to the same messages is the better one."""
    preference = await services.feedback.prefer(
        caller,
        messages=[Message(each.role, each.content) for each in body.messages],
        chosen=Answer(**body.chosen.model_dump()),
        rejected=Answer(**body.rejected.model_dump()),
        blind=body.blind,
    )
    return PreferencePublic.of(preference)


@preferences_router.get("", responses=errors(404))
async def list_preferences(
    services: ServicesDep,
    caller: CallerDep,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    before: Id | None = None,
) -> PreferenceList:
    """The caller's pairs, newest first."""
    found = await services.feedback.preferences(caller, limit, before)
    return PreferenceList(preferences=[PreferencePublic.of(each) for each in found])


@preferences_router.delete("/{preference_id}", status_code=204, responses=errors(404))
async def remove_preference(preference_id: str, services: ServicesDep, caller: CallerDep) -> None:
    """Forget a pair; datasets that were made of it stay."""
    await services.feedback.remove_preference(caller, preference_id)


@datasets_router.post("/from-feedback", status_code=201, responses=errors(409))
async def dataset_from_feedback(body: FeedbackDataset, services: ServicesDep, caller: CallerDep) -> MadeDatasetPublic:
    """Make training data of what you think of answers. Those that were stopped or cut are left out."""
    made = await services.feedback_datasets.make(caller, body.name, body.source)
    return MadeDatasetPublic(**DatasetPublic.of(made.dataset).model_dump(), num_left_out=made.num_left_out)
