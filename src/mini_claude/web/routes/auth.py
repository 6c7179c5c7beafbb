"""Signing in with a name and a password, and out again."""

from typing import Final

from fastapi import APIRouter, Depends, Request

from mini_claude.errors import InvalidRequest
from mini_claude.services.identity import Caller
from mini_claude.services.tokens import AccessToken
from mini_claude.web.deps import CallerDep, ServicesDep, address_of, caller_of
from mini_claude.web.schemas.errors import errors
from mini_claude.web.schemas.users import Login, PasswordChange, TokenMade

_SIGNED_IN_ONLY: Final = "This is for those who signed in with a name and a password; send the token that they got."

public_router = APIRouter(prefix="/api/v1/auth", tags=["users"])
router = APIRouter(prefix="/api/v1/auth", tags=["users"], dependencies=[Depends(caller_of)])


@public_router.post(
    "/login",
    responses={
        401: {"description": "The name or the password is wrong (code invalid_login)."},
        429: {"description": "Too many attempts (code too_many_logins); Retry-After says when to come back."},
    },
)
async def login(body: Login, request: Request, services: ServicesDep) -> TokenMade:
    """A token for a name and a password. It opens what a key of the same role would."""
    made = await services.logins.login(body.name, body.password.get_secret_value(), address_of(request))
    return TokenMade.of(made)


@router.post("/logout", status_code=204, responses=errors(400))
async def logout(services: ServicesDep, caller: CallerDep) -> None:
    """Refuse the token that is sent from now on."""
    await services.logins.logout(_token_of(caller))


@router.post("/password", responses=errors(429))
async def change_password(
    body: PasswordChange, request: Request, services: ServicesDep, caller: CallerDep
) -> TokenMade:
    """Change one's own password. All tokens from before end; the answer has a new one."""
    old, new = body.old_password.get_secret_value(), body.new_password.get_secret_value()
    user_id = _token_of(caller).user_id
    return TokenMade.of(await services.logins.change_password(user_id, old, new, address_of(request)))


def _token_of(caller: Caller) -> AccessToken:
    if caller.token is None:
        raise InvalidRequest(_SIGNED_IN_ONLY, code="no_token")
    return caller.token
