"""Who the caller is; and for admins the API keys: make, list and revoke them."""

from typing import Final

from fastapi import APIRouter, Depends, Request

from mini_claude.errors import Forbidden
from mini_claude.web.deps import ADMIN_ONLY, ADMIN_RESPONSES, AdminDep, CallerDep, ServicesDep, caller_of
from mini_claude.web.origins import is_local_client
from mini_claude.web.schemas.keys import KeyCreate, KeyList, KeyMade, KeyPublic, LimitPublic, Me

FIRST_KEY_SENTENCE: Final = (
    "The first key closes the server to all who have none, so it is made on the server's own machine: "
    "`mini-claude keys create NAME`."
)

me_router = APIRouter(prefix="/api/v1/me", tags=["keys"], dependencies=[Depends(caller_of)])
router = APIRouter(prefix="/api/v1/keys", tags=["keys"], dependencies=[ADMIN_ONLY], responses=ADMIN_RESPONSES)


@me_router.get("")
async def who_am_i(services: ServicesDep, caller: CallerDep) -> Me:
    """What the key that was sent may do, until when, and what is left of its limits."""
    limits = [LimitPublic.of(state) for state in await services.limits.states(caller)]
    if caller.key_id is None:
        return Me(role=caller.role, key_id=None, key_name=None, expires_at=None, limits=limits)
    key = await services.keys.get(caller.key_id)
    return Me(role=key.role, key_id=key.id, key_name=key.name, expires_at=key.expires_at, limits=limits)


@router.get("")
async def list_keys(services: ServicesDep) -> KeyList:
    """All keys with their roles and ends, never the keys themselves. For admins."""
    return KeyList(keys=[KeyPublic.of(key) for key in await services.keys.list()])


@router.post("", status_code=201)
async def create_key(body: KeyCreate, request: Request, services: ServicesDep, caller: AdminDep) -> KeyMade:
    """Make a key; this answer alone holds it. From the first key on, every request needs one. For admins."""
    if caller.key_id is None and not is_local_client(request.scope):
        raise Forbidden(FIRST_KEY_SENTENCE, code="first_key_is_local")
    key, plain = await services.keys.create(body.name, body.role, body.expires_at, body.to_limits())
    return KeyMade.of(key, key=plain)


@router.delete("/{key_id}", status_code=204, responses={404: {"description": "There is no such key."}})
async def revoke_key(key_id: str, services: ServicesDep) -> None:
    """Refuse a key from now on, also the one that asks for it. For admins."""
    await services.keys.revoke(key_id)
