"""API keys as the native API takes and shows them; a key itself is in one answer only, the one that made it."""

import time
from dataclasses import asdict, fields, replace
from typing import Annotated, Any, Final, Self

from pydantic import BaseModel, ConfigDict, Field

from mini_claude.data.records import NO_LIMITS, ApiKey, KeyRole, KeyState, Limits
from mini_claude.services.limits import MAX_LIMIT, LimitState
from mini_claude.web.schemas.sampling import WireModel

_LISTED: Final[dict[str, Any]] = {
    "id": "5c0d6b0e7f1a4c7f9e0a1b2c3d4e5f60",
    "name": "laptop",
    "prefix": "mc-Ab3dE9",
    "role": "user",
    "state": "active",
    "created_at": 1780000000.0,
    "expires_at": 1782592000.0,
    "revoked_at": None,
    "requests_per_minute": 60,
    "requests_per_day": None,
    "tokens_per_minute": None,
    "tokens_per_day": 1_000_000,
    "concurrent_replies": 2,
}
_STATE: Final[dict[str, Any]] = {
    "name": "requests_per_minute",
    "limit": 60,
    "remaining": 59,
    "reset_seconds": 12.5,
}
_OWN: Final = "null: what the server's settings say; 0: no limit."
_LIMIT_NAMES: Final = frozenset(field.name for field in fields(Limits))
Limit = Annotated[int, Field(ge=0, le=MAX_LIMIT)]


class LimitPublic(BaseModel):
    """A limit that holds for the caller, and what is left of it."""

    name: str
    limit: int
    remaining: int
    reset_seconds: float = Field(
        description="Until all of it is there again. Of concurrent_replies 0: one is free when one ends."
    )

    @classmethod
    def of(cls, state: LimitState) -> Self:
        """From the service's value."""
        return cls(name=state.name, limit=state.limit, remaining=state.remaining, reset_seconds=state.reset_seconds)


class OwnLimits(WireModel):
    """Limits of a key's or a user's own."""

    requests_per_minute: Limit | None = Field(None, description=f"Requests for replies. {_OWN}")
    requests_per_day: Limit | None = Field(None, description=f"Requests for replies in 24 hours. {_OWN}")
    tokens_per_minute: Limit | None = Field(None, description=f"Of prompts and replies together. {_OWN}")
    tokens_per_day: Limit | None = Field(None, description=f"Of prompts and replies together, in 24 hours. {_OWN}")
    concurrent_replies: Limit | None = Field(None, description=f"Replies that are written at once. {_OWN}")

    @staticmethod
    def fields_of(limits: Limits) -> dict[str, int | None]:
        """These fields' values."""
        return asdict(limits)

    def to_limits(self) -> Limits:
        """The limits alone."""
        return self.changed(NO_LIMITS)

    @property
    def changes_limits(self) -> bool:
        """Whether any of them was given."""
        return bool(self.model_fields_set & _LIMIT_NAMES)

    def changed(self, before: Limits) -> Limits:
        """The limits from before with those that were given in their places."""
        return replace(before, **{name: getattr(self, name) for name in self.model_fields_set & _LIMIT_NAMES})


class Me(BaseModel):
    """Who is calling, and within which limits: by a key, as a user, or neither, who has a role and limits only."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "role": "user",
                    "key_id": _LISTED["id"],
                    "key_name": "laptop",
                    "user_id": None,
                    "user_name": None,
                    "expires_at": _LISTED["expires_at"],
                    "limits": [_STATE],
                },
            ]
        }
    )

    role: KeyRole = Field(description="admin: may manage the server for everybody.")
    key_id: str | None = None
    key_name: str | None = None
    user_id: str | None = None
    user_name: str | None = None
    expires_at: float | None = Field(None, description="Of the key or token, Unix time; null: never.")
    limits: list[LimitPublic] = Field(description="Those that hold, the settings' among them; empty: there are none.")


class KeyCreate(OwnLimits):
    """Body of POST /api/v1/keys."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"name": "laptop"},
                {"name": "classroom", "role": "user", "expires_at": 4e9, "requests_per_minute": 20},
            ]
        }
    )

    name: Annotated[str, Field(min_length=1, max_length=200, description="Whose it is, for your own memory.")]
    role: KeyRole | None = Field(None, description="null: user, and of the first key admin.")
    expires_at: float | None = Field(None, description="Unix time, at most 100 years from now; null: never.")


class KeyChange(OwnLimits):
    """Body of PATCH /api/v1/keys/{key_id}. What is left out stays as it is."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"requests_per_minute": 20}, {"tokens_per_day": None}]})


class KeyPublic(OwnLimits):
    """A key without its text; `prefix` is how that begins."""

    model_config = ConfigDict(json_schema_extra={"examples": [_LISTED]})

    id: str
    name: str
    prefix: str
    role: KeyRole
    state: KeyState = Field(description="Only an active key opens anything.")
    created_at: float
    expires_at: float | None
    revoked_at: float | None

    @classmethod
    def of(cls, record: ApiKey, **more: Any) -> Self:
        """From the record; `more` are fields that it does not have."""
        return cls(
            id=record.id,
            name=record.name,
            prefix=record.prefix,
            role=record.role,
            state=record.state(time.time()),
            created_at=record.created_at,
            expires_at=record.expires_at,
            revoked_at=record.revoked_at,
            **cls.fields_of(record.limits),
            **more,
        )


class KeyMade(KeyPublic):
    """A new key. `key` is shown here and never again."""

    model_config = ConfigDict(json_schema_extra={"examples": [{**_LISTED, "key": "mc-Ab3dE9" + "." * 37}]})

    key: str = Field(description="To be sent as `Authorization: Bearer ...`.")


class KeyList(BaseModel):
    """All keys, revoked and expired ones too, oldest first."""

    keys: list[KeyPublic]
