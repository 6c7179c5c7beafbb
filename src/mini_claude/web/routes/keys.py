"""Who the caller is; and for admins the API keys: make, list, change and revoke them."""

from fastapi import APIRouter, Depends, Request

from mini_claude.web.deps import (
    ADMIN_ONLY,
    ADMIN_RESPONSES,
    AdminDep,
    CallerDep,
    ServicesDep,
    caller_of,
    require_own_machine,
)
from mini_claude.web.schemas.keys import KeyChange, KeyCreate, KeyList, KeyMade, KeyPublic, LimitPublic, Me

me_router = APIRouter(prefix="/api/v1/me", tags=["keys"], dependencies=[Depends(caller_of)])
router = APIRouter(prefix="/api/v1/keys", tags=["keys"], dependencies=[ADMIN_ONLY], responses=ADMIN_RESPONSES)


@me_router.get("")
async def who_am_i(services: ServicesDep, caller: CallerDep) -> Me:
    """Whose key or token was sent, what they may do, until when, and what is left of their limits."""
    me = Me(role=caller.role, limits=[LimitPublic.of(state) for state in await services.limits.states(caller)])
    if caller.token is not None:
        user = await services.users.get(caller.owner)
        return me.model_copy(update={"user_id": user.id, "user_name": user.name, "expires_at": caller.token.expires_at})
    if caller.key_id is not None:
        key = await services.keys.get(caller.key_id)
        return me.model_copy(update={"key_id": key.id, "key_name": key.name, "expires_at": key.expires_at})
    return me


@router.get("")
async def list_keys(services: ServicesDep) -> KeyList:
    """All keys with their roles and ends, never the keys themselves. For admins."""
    return KeyList(keys=[KeyPublic.of(key) for key in await services.keys.list()])


@router.post("", status_code=201)
async def create_key(body: KeyCreate, request: Request, services: ServicesDep, caller: AdminDep) -> KeyMade:
    """Make a key; this answer alone holds it. From the first key on, every request needs one. For admins."""
    require_own_machine(request, caller)
    key, plain = await services.keys.create(body.name, body.role, body.expires_at, body.to_limits())
    return KeyMade.of(key, key=plain)


@router.patch("/{key_id}", responses={404: {"description": "There is no such key."}})
async def change_key(key_id: str, body: KeyChange, services: ServicesDep) -> KeyPublic:
    """Change the limits that are given, from the key's next request on. For admins."""
    key = await services.keys.get(key_id)
    return KeyPublic.of(await services.keys.set_limits(key_id, body.changed(key.limits)))


@router.delete("/{key_id}", status_code=204, responses={404: {"description": "There is no such key."}})
async def revoke_key(key_id: str, services: ServicesDep) -> None:
    """Refuse a key from now on, also the one that asks for it. For admins."""
    await services.keys.revoke(key_id)
