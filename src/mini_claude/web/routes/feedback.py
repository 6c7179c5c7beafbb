"""The native API's feedback: a thumb for a reply, or the answer that should have been given."""

from fastapi import APIRouter, Depends

from mini_claude.web.deps import CallerDep, ServicesDep, caller_of
from mini_claude.web.schemas.feedback import FeedbackChange, FeedbackList, FeedbackPublic

router = APIRouter(prefix="/api/v1/chat", tags=["feedback"], dependencies=[Depends(caller_of)])


@router.put("/feedback/{reply_id}")
async def rate_reply(reply_id: str, body: FeedbackChange, services: ServicesDep, caller: CallerDep) -> FeedbackPublic:
    """Say what you think of a reply of yours; it takes the place of what you thought before."""
    return FeedbackPublic.of(
        await services.feedback.rate(caller, reply_id, rating=body.rating, correction=body.correction)
    )


@router.get("/sessions/{session_id}/feedback")
async def session_feedback(session_id: str, services: ServicesDep, caller: CallerDep) -> FeedbackList:
    """All feedback in a session, in the order of its turns."""
    given = await services.feedback.of_session(caller, session_id)
    return FeedbackList(feedback=[FeedbackPublic.of(each) for each in given.values()])
