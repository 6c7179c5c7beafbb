"""The OpenAPI document is complete; that it is true is tested in tests/torture/test_description.py."""

from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from mini_claude.web.api import create_app
from mini_claude.web.api_description import OPEN
from mini_claude.web.schemas.errors import errors

DOCUMENT: dict[str, Any] = create_app().openapi()
SCHEMAS: dict[str, Any] = DOCUMENT["components"]["schemas"]
JSON = "application/json"
OTHER_REASONS = ("database_in_memory", "no_feedback", "no_token")  # why a body that fits is not done here


def operations() -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in DOCUMENT["paths"].items():
        for method, operation in methods.items():
            yield method, path, operation


def examples() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Every example of a JSON body with its operation."""
    for method, path, operation in operations():
        body = operation.get("requestBody", {"content": {}})["content"].get(JSON)
        if body is not None:
            name = body["schema"]["$ref"].rpartition("/")[2]
            for example in SCHEMAS[name].get("examples", [None]):
                yield method, path, example


def test_every_operation_says_what_it_does_who_may_call_it_and_what_can_go_wrong() -> None:
    for method, path, operation in operations():
        assert operation["description"], (method, path)
        assert operation["tags"][0] in {tag["name"] for tag in DOCUMENT["tags"]}
        needs_nothing = operation.get("security") == []
        assert needs_nothing == (path in OPEN)
        assert "401" in operation["responses"] or path == "/api/v1/health/live"
        shape = "OpenAIErrorBody" if path.startswith("/v1/") else "NativeErrorBody"
        for status, response in operation["responses"].items():
            assert response["description"], (method, path, status)
            if status[0] in "45" and (path, status) != ("/api/v1/health", "503"):
                assert response["content"][JSON]["schema"]["$ref"].endswith(shape), (method, path, status)
            if status in ("429", "503"):
                assert "Retry-After" in response["headers"]
    assert {"bearer": []} in DOCUMENT["security"]
    assert {name for each in DOCUMENT["security"] for name in each} == DOCUMENT["components"]["securitySchemes"].keys()


def test_no_schema_is_missing_and_none_is_left_over() -> None:
    text = str(DOCUMENT)
    assert all(f"#/components/schemas/{name}'" in text for name in SCHEMAS)
    assert text.count("HTTPValidationError") == 0


@pytest.mark.parametrize(("method", "path", "example"), list(examples()))
async def test_every_example_of_a_body_fits(
    client: httpx2.AsyncClient, method: str, path: str, example: dict[str, Any]
) -> None:
    answer = await client.request(method, path.replace("{", "").replace("}", ""), json=example)
    assert answer.status_code not in (400, 422) or answer.json()["error"]["code"] in OTHER_REASONS, answer.text


def test_an_error_without_a_description_cannot_be_declared() -> None:
    assert errors(404)[404]["description"]
    with pytest.raises(KeyError):
        errors(418)
