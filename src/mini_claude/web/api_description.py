"""The API's own description (OpenAPI), completed: how to say who is calling, and every error that each route gives.

FastAPI describes what routes declare. Errors that come from what surrounds all routes (web/access.py, web/deps.py) are
added here, and the shape of every error's body.
"""

from typing import Any, Final

from fastapi import FastAPI

from mini_claude.web.error_handlers import is_openai_path
from mini_claude.web.schemas.errors import DESCRIPTIONS, NativeErrorBody, OpenAIErrorBody

Json = dict[str, Any]

DESCRIPTION: Final = """Chat with a small language model of your own, fine-tune it, and prove what came of it.

Paths under `/v1` speak OpenAI's API, those under `/api/v1` are Mini-Claude's own. Errors are
`{"error": {"code", "message", "param", "request_id"}}` there and OpenAI's under `/v1`; every answer has an
`x-request-id`.
Without any key the server answers to its own machine only, and needs no credentials."""
TAGS: Final = [
    {"name": "OpenAI", "description": "OpenAI's API."},
    {"name": "chat", "description": "Answers, stored sessions that branch."},
    {"name": "feedback", "description": "What people thought of answers, and datasets made of that."},
    {"name": "xray", "description": "How the tokens of an answer were chosen."},
    {"name": "models", "description": "Models and adapters."},
    {"name": "datasets", "description": "Data for training."},
    {"name": "training", "description": "Training jobs."},
    {"name": "keys", "description": "Who may call, with a key."},
    {"name": "users", "description": "Who may call, with a name and a password."},
    {"name": "system", "description": "Health and metrics."},
]
SECURITY: Final[Json] = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "Authorization: Bearer mc-..."},
    "key": {
        "type": "apiKey",
        "in": "header",
        "name": "x-api-key",
        "description": "The same key.",
    },
}
OPEN: Final = frozenset({"/api/v1/health/live", "/api/v1/auth/login"})  # need no credentials
ALWAYS: Final = (403, 408, 413, 431, 500, 503)
RETRY: Final[Json] = {
    "Retry-After": {"description": "Seconds after which to try again.", "schema": {"type": "integer"}},
}
REQUEST_ID: Final[Json] = {
    "x-request-id": {"description": "Leads to the server's log.", "schema": {"type": "string"}},
}


class DescribedApp(FastAPI):
    """FastAPI with a description that is complete."""

    def openapi(self) -> Json:
        """The OpenAPI document, made once."""
        if self.openapi_schema is None:
            self.openapi_schema = _complete(super().openapi())
        return self.openapi_schema


def _complete(document: Json) -> Json:
    document["info"]["description"] = DESCRIPTION
    document["tags"] = TAGS
    document["security"] = [{name: []} for name in SECURITY]
    schemas: Json = document["components"]["schemas"]
    for name in ("HTTPValidationError", "ValidationError"):  # FastAPI's own shapes, which no answer has
        schemas.pop(name, None)
    for body in (NativeErrorBody, OpenAIErrorBody):
        own = body.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas |= own.pop("$defs")
        schemas[body.__name__] = own
    document["components"]["securitySchemes"] = SECURITY
    for path, operations in document["paths"].items():
        for operation in operations.values():
            if path in OPEN:
                operation["security"] = []
            _complete_operation(path, operation)
    return document


def _complete_operation(path: str, operation: Json) -> None:
    responses: Json = operation["responses"]
    statuses = set(ALWAYS) if path in OPEN else {401, *ALWAYS}
    if "requestBody" in operation:
        statuses.add(400)
    if "422" in responses and "HTTPValidationError" in str(responses["422"]):  # FastAPI's guess
        del responses["422"]
        if any(each["in"] != "path" for each in operation.get("parameters", ())):
            statuses.add(422)
    if "requestBody" in operation and not is_openai_path(path):
        statuses.add(422)
    for number in statuses:
        responses.setdefault(str(number), {"description": DESCRIPTIONS[number]})
    for status, response in responses.items():
        response.setdefault("headers", {}).update(REQUEST_ID)
        if status[0] in "45":
            shape = OpenAIErrorBody if is_openai_path(path) else NativeErrorBody
            schema = {"$ref": f"#/components/schemas/{shape.__name__}"}
            response.setdefault("content", {"application/json": {"schema": schema}})
            if status in ("429", "503"):
                response["headers"].update(RETRY)
    operation["responses"] = dict(sorted(responses.items()))
