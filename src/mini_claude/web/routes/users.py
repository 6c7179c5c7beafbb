"""For admins the users: make, list, change and remove them."""

from fastapi import APIRouter, Request

from mini_claude.web.deps import ADMIN_ONLY, ADMIN_RESPONSES, AdminDep, ServicesDep, require_own_machine
from mini_claude.web.schemas.errors import errors
from mini_claude.web.schemas.users import UserChange, UserCreate, UserList, UserPublic

router = APIRouter(prefix="/api/v1/users", tags=["users"], dependencies=[ADMIN_ONLY], responses=ADMIN_RESPONSES)


@router.get("")
async def list_users(services: ServicesDep) -> UserList:
    """All users with their roles and limits. For admins."""
    return UserList(users=[UserPublic.of(user) for user in await services.users.list()])


@router.post("", status_code=201, responses=ADMIN_RESPONSES | errors(409))
async def create_user(body: UserCreate, request: Request, services: ServicesDep, caller: AdminDep) -> UserPublic:
    """Make a user, who signs in at POST /api/v1/auth/login. From the first on, every request needs a key or token.

    For admins.
    """
    require_own_machine(request, caller)
    password = body.password.get_secret_value()
    return UserPublic.of(await services.users.create(body.name, password, body.role, body.to_limits()))


@router.patch("/{user_id}", responses=ADMIN_RESPONSES | errors(404, 409))
async def change_user(user_id: str, body: UserChange, services: ServicesDep) -> UserPublic:
    """Change what is given: role, limits, password, or whether the user may sign in. For admins."""
    user = await services.users.get(user_id)
    if body.password is not None:  # first, since it alone can be refused by its value
        user = await services.users.set_password(user_id, body.password.get_secret_value())
    if body.role is not None:
        user = await services.users.set_role(user_id, body.role)
    if body.changes_limits:
        user = await services.users.set_limits(user_id, body.changed(user.limits))
    if body.disabled is not None:
        user = await (services.users.disable if body.disabled else services.users.enable)(user_id)
    return UserPublic.of(user)


@router.delete("/{user_id}", status_code=204, responses=ADMIN_RESPONSES | errors(404, 409))
async def remove_user(user_id: str, services: ServicesDep) -> None:
    """Remove a user with all that was said: conversations, feedback, preferences. Adapters stay. For admins."""
    await services.users.remove(user_id)
