"""What an answer tells of the caller's limits: headers, and their place in the API's description."""

import math
from typing import Any, Final

from pydantic import BaseModel

from mini_claude.services.identity import Caller
from mini_claude.services.services import Services
from mini_claude.web.schemas.errors import NativeErrorBody, OpenAIErrorBody

_HEADERS: Final[dict[str, Any]] = {
    "RateLimit-Limit": {
        "description": "Of the caller's limit that is nearest to its end: how much it allows. Without limits not sent.",
        "schema": {"type": "integer"},
    },
    "RateLimit-Remaining": {"description": "How much of it is left.", "schema": {"type": "integer"}},
    "RateLimit-Reset": {"description": "Seconds until all of it is there again.", "schema": {"type": "integer"}},
}


_STREAM: Final[dict[str, Any]] = {"content": {"text/event-stream": {}}}


def _responses(body: type[NativeErrorBody] | type[OpenAIErrorBody], **whole: Any) -> dict[int | str, dict[str, Any]]:
    retry = {"description": "Seconds until the limit is free again.", "schema": {"type": "integer"}}
    return {
        200: {"headers": _HEADERS, **whole},
        429: {
            "description": "A limit of the caller's is reached (code rate_limit_exceeded); nothing was stored.",
            "model": body,
            "headers": {"Retry-After": retry, **_HEADERS},
        },
    }


LIMIT_RESPONSES: Final = _responses(NativeErrorBody)
STREAM_RESPONSES: Final = _responses(NativeErrorBody, **_STREAM)


def openai_responses(whole: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    """What a route of OpenAI's API that answers whole or as a stream gives besides errors."""
    return _responses(OpenAIErrorBody, model=whole, **_STREAM)


async def limit_headers(services: Services, caller: Caller) -> dict[str, str]:
    """The headers of a request that was let in; none for a caller without limits."""
    state = await services.limits.nearest(caller)
    if state is None:
        return {}
    return {
        "RateLimit-Limit": str(state.limit),
        "RateLimit-Remaining": str(state.remaining),
        "RateLimit-Reset": str(math.ceil(state.reset_seconds)),
    }
