"""Errors as the two APIs describe them; `web/error_handlers.py` makes them."""

from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field

_SENTENCE: Final = "The limit of 60 requests a minute is reached: try again in 12 seconds."
_NATIVE: Final[dict[str, Any]] = {
    "code": "rate_limit_exceeded",
    "message": _SENTENCE,
    "param": None,
    "request_id": "req_5c0d6b0e7f1a4c7f9e0a1b2c3d4e5f60",
}
_OPENAI: Final[dict[str, Any]] = {
    "message": _SENTENCE,
    "type": "rate_limit_error",
    "param": None,
    "code": "rate_limit_exceeded",
}


class NativeError(BaseModel):
    """What went wrong, and what helps."""

    code: str = Field(description="Stable: for programs.")
    message: str = Field(description="A sentence for a person that names the fix.")
    param: str | None = Field(description="The field that is wrong, if one is.")
    request_id: str = Field(description="Leads to the server's log.")


class NativeErrorBody(BaseModel):
    """An error of the native API."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"error": _NATIVE}]})

    error: NativeError


class OpenAIError(BaseModel):
    """An error in OpenAI's words."""

    message: str
    type: str
    param: str | None
    code: str | None


class OpenAIErrorBody(BaseModel):
    """An error of OpenAI's API."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"error": _OPENAI}]})

    error: OpenAIError
