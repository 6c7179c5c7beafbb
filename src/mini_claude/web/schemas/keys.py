"""API keys as the native API takes and shows them; a key itself is in one answer only, the one that made it."""

import time
from typing import Annotated, Any, Final, Self

from pydantic import BaseModel, ConfigDict, Field

from mini_claude.data.records import ApiKey, KeyRole, KeyState
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
}


class Me(BaseModel):
    """Who is calling; of the local caller of a server without keys all but the role is null."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"role": "user", "key_id": _LISTED["id"], "key_name": "laptop", "expires_at": _LISTED["expires_at"]},
                {"role": "admin", "key_id": None, "key_name": None, "expires_at": None},
            ]
        }
    )

    role: KeyRole = Field(description="admin: may manage the server for everybody.")
    key_id: str | None
    key_name: str | None
    expires_at: float | None = Field(description="Unix time; null: never.")


class KeyCreate(WireModel):
    """Body of POST /api/v1/keys."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"name": "laptop"}, {"name": "classroom", "role": "user", "expires_at": 4e9}]}
    )

    name: Annotated[str, Field(min_length=1, max_length=200, description="Whose it is, for your own memory.")]
    role: KeyRole | None = Field(None, description="null: user, and of the first key admin.")
    expires_at: float | None = Field(None, description="Unix time, at most 100 years from now; null: never.")


class KeyPublic(BaseModel):
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
    def of(cls, record: ApiKey, **more: str) -> Self:
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
            **more,
        )


class KeyMade(KeyPublic):
    """A new key. `key` is shown here and never again."""

    model_config = ConfigDict(json_schema_extra={"examples": [{**_LISTED, "key": "mc-Ab3dE9" + "." * 37}]})

    key: str = Field(description="To be sent as `Authorization: Bearer ...`.")


class KeyList(BaseModel):
    """All keys, revoked and expired ones too, oldest first."""

    keys: list[KeyPublic]
