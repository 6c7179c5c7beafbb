"""Users as the native API takes and shows them; passwords come in and never go out."""

from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr

from mini_claude.data.records import KeyRole, User, UserState
from mini_claude.services.passwords import MAX_CHARACTERS, MIN_CHARACTERS
from mini_claude.services.users import SignedIn
from mini_claude.web.schemas.keys import OwnLimits
from mini_claude.web.schemas.sampling import WireModel

_RULE: Final = f"{MIN_CHARACTERS} to {MAX_CHARACTERS} characters."
_USER: Final[dict[str, Any]] = {
    "id": "7f1a4c7f9e0a1b2c3d4e5f605c0d6b0e",
    "name": "ada",
    "role": "user",
    "state": "active",
    "created_at": 1780000000.0,
    "disabled_at": None,
    "requests_per_minute": 60,
    "requests_per_day": None,
    "tokens_per_minute": None,
    "tokens_per_day": 1_000_000,
    "concurrent_replies": 2,
}
Password = Annotated[SecretStr, Field(max_length=1024)]
Name = Annotated[str, Field(max_length=200)]


class Login(WireModel):
    """Body of POST /api/v1/auth/login."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"name": "ada", "password": "four words and more"}]})

    name: Name
    password: Password


class PasswordChange(WireModel):
    """Body of POST /api/v1/auth/password."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"old_password": "correct horse battery", "new_password": "staple of the battery"}]
        }
    )

    old_password: Password
    new_password: Password = Field(description=_RULE)


class TokenMade(BaseModel):
    """A new token, to be sent as `Authorization: Bearer ...` where a key could be."""

    access_token: str
    token_type: Literal["bearer"] = "bearer"  # noqa: S105
    expires_at: float = Field(description="Unix time.")
    user_id: str
    name: str
    role: KeyRole

    @classmethod
    def of(cls, made: SignedIn) -> Self:
        """From the service's value."""
        user = made.user
        return cls(
            access_token=made.text,
            expires_at=made.token.expires_at,
            user_id=user.id,
            name=user.name,
            role=user.role,
        )


class UserCreate(OwnLimits):
    """Body of POST /api/v1/users."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"name": "ada", "password": "four words and more"}]})

    name: Name = Field(description="Up to 64 of a-z, 0-9 and . _ @ + -; it is what one signs in with.")
    password: Password = Field(description=_RULE)
    role: KeyRole | None = Field(None, description="null: user, and where nobody is an admin yet admin.")


class UserChange(OwnLimits):
    """Body of PATCH /api/v1/users/{user_id}. What is left out stays as it is."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"disabled": True}, {"requests_per_minute": 20}]})

    role: KeyRole | None = Field(None, description="null: as it is.")
    disabled: bool | None = Field(None, description="true: refused, and all tokens end. null: as it is.")
    password: Password | None = Field(None, description=f"A new one, which ends all tokens. {_RULE}")


class UserPublic(OwnLimits):
    """A user. `state`: a disabled one cannot sign in."""

    model_config = ConfigDict(json_schema_extra={"examples": [_USER]})

    id: str
    name: str
    role: KeyRole
    state: UserState
    created_at: float
    disabled_at: float | None

    @classmethod
    def of(cls, user: User) -> Self:
        """From the record."""
        return cls(
            id=user.id,
            name=user.name,
            role=user.role,
            state=user.state,
            created_at=user.created_at,
            disabled_at=user.disabled_at,
            **cls.fields_of(user.limits),
        )


class UserList(BaseModel):
    """All users, disabled ones too, oldest first."""

    users: list[UserPublic]
