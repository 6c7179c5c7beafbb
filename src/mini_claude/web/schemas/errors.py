"""Errors as the two APIs describe them; `web/error_handlers.py` makes them, `web/api_description.py` completes them."""

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


DESCRIPTIONS: Final[dict[int, str]] = {
    400: "A value cannot be honoured, or the body is no JSON; `param` names the field.",
    401: "The credentials are missing, wrong or ended (code invalid_api_key).",
    403: "The call comes from a web page of another origin (origin_not_allowed), or by an unknown Host name "
    "(host_not_allowed).",
    404: "What is named does not exist, or not for this caller.",
    408: "The request did not arrive in time (code request_timeout).",
    409: "What is named is not in a state that allows this, or the name is taken.",
    413: "The body is larger than allowed; the message names the bound.",
    422: "The body or a parameter does not fit its schema, or the model cannot be loaded (code model_load_failed); "
    "`param` names the field.",
    429: "A limit of the caller's is reached (code rate_limit_exceeded); nothing was stored.",
    431: "The address and headers are larger than allowed (code head_too_large).",
    500: "A fault of the server's, of which `request_id` leads to the log.",
    503: "Not now: the server is full, starts, ends or has no room; nothing was stored.",
}


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The errors that a route gives besides those of every route, for its description."""
    return {status: {"description": DESCRIPTIONS[status]} for status in statuses}


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
