"""Every place in the API's description where a client says a text."""

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from functools import reduce
from typing import Any, Final
from urllib.parse import quote

from mini_claude.web.api import create_app
from mini_claude.web.schemas.socket import CLIENT_FRAME

DOCUMENT: Final[dict[str, Any]] = create_app().openapi()
SOCKET_SCHEMA: Final = CLIENT_FRAME.json_schema()
A_KEY: Final = object()  # in a place: the name of a field that clients choose
Place = tuple[Any, ...]


@dataclass(frozen=True)
class Field:
    """Where: "path", "query", "header", "json", "form" or "file" (its name); and the place in it."""

    method: str
    path: str
    where: str
    place: Place

    def __str__(self) -> str:
        names = ("*" if part is A_KEY else str(part) for part in self.place)
        return f"{self.method} {self.path} {self.where} {'.'.join(names)}"


def places(schema: dict[str, Any], document: dict[str, Any], place: Place = ()) -> Iterator[Place]:
    """Where texts are in a value of this schema."""
    if "$ref" in schema:
        names = schema["$ref"].removeprefix("#/").split("/")
        yield from places(reduce(dict.__getitem__, names, document), document, place)
        return
    for option in (*schema.get("anyOf", ()), *schema.get("oneOf", ())):
        yield from places(option, document, place)
    if schema.get("type") == "string":
        yield place
    for name, each in schema.get("properties", {}).items():
        yield from places(each, document, (*place, name))
    if isinstance(schema.get("items"), dict):
        yield from places(schema["items"], document, (*place, 0))
    for each in (schema.get("additionalProperties"), *schema.get("patternProperties", {}).values()):
        if isinstance(each, dict):
            yield (*place, A_KEY)
            yield from places(each, document, (*place, "x"))


def fields() -> Iterator[Field]:
    """All of them."""
    for path, operations in DOCUMENT["paths"].items():
        for method, operation in operations.items():
            for parameter in operation.get("parameters", ()):
                for _ in places(parameter["schema"], DOCUMENT):
                    yield Field(method, path, parameter["in"], (parameter["name"],))
            content = operation.get("requestBody", {"content": {}})["content"]
            for kind, body in content.items():
                for place in dict.fromkeys(places(body["schema"], DOCUMENT)):
                    if kind == "application/json":
                        yield Field(method, path, "json", place)
                    else:
                        is_file = body["schema"]["properties"][place[0]].get("format") == "binary"
                        yield Field(method, path, "file" if is_file else "form", place)


def put(value: Any, place: Place, text: str) -> Any:
    """`value` with the text at that place; what is missing on the way is made."""
    if not place:
        return text
    head, *rest = place
    if head is A_KEY:
        return {text: put(None, tuple(rest), text) if rest else 1}
    if head == 0:
        first = value[0] if isinstance(value, list) and value else None
        return [put(first, tuple(rest), text)]
    own = dict(value) if isinstance(value, dict) else {}
    return own | {head: put(own.get(head), tuple(rest), text)}


def request(field: Field, text: str) -> dict[str, Any]:
    """Arguments of an HTTP client for a request that says the text there, and otherwise what the examples say."""
    operation = DOCUMENT["paths"][field.path][field.method]
    asked: dict[str, Any] = {"method": field.method, "url": field.path, "headers": {}}
    for parameter in operation.get("parameters", ()):
        if parameter["in"] == "path":
            value = text if field.place == (parameter["name"],) else "a"
            escaped = quote(value, safe="").replace(".", "%2E")  # clients take dots out of addresses
            asked["url"] = asked["url"].replace(f"{{{parameter['name']}}}", escaped)
    content = operation.get("requestBody", {"content": {}})["content"]
    if "application/json" in content:
        name = content["application/json"]["schema"]["$ref"].rpartition("/")[2]
        example = deepcopy(DOCUMENT["components"]["schemas"][name]["examples"][0])
        asked["json"] = put(example, field.place, text) if field.where == "json" else example
    elif content:
        schema = content["multipart/form-data"]["schema"]["properties"]
        files = [name for name, each in schema.items() if each.get("format") == "binary"]
        asked["files"] = {
            name: (text if field.where == "file" and field.place == (name,) else name, b"x") for name in files
        }
        asked["data"] = {field.place[0]: text} if field.where == "form" else {"name": "x"}
    if field.where == "query":
        asked["params"] = {field.place[0]: text}
    if field.where == "header":
        asked["headers"][field.place[0]] = text
    return asked
