"""Paths in any text that a client may say are texts and never files: REST, OpenAI's routes and WebSockets."""

import asyncio
import json
from typing import Any

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from ..web.conftest import OpenSite, Site, served
from .payloads import SECRET, canary
from .sizes import Sizes, at_both_sizes
from .string_fields import SOCKET_SCHEMA, Field, fields, places, put, request

FIELDS = list(fields())
FRAMES: dict[str, dict[str, Any]] = {  # one that is served, of each type
    "auth": {"key": "mc-"},
    "chat": {"message": "Hello", "max_tokens": 1},
    "regenerate": {"session_id": "a", "parent_id": "a"},
    "stop": {"reply_id": "a"},
    "resume": {"reply_id": "a"},
}
FRAME_SCHEMAS: dict[str, dict[str, Any]] = {
    kind: SOCKET_SCHEMA["$defs"][ref.rpartition("/")[2]]
    for kind, ref in SOCKET_SCHEMA["discriminator"]["mapping"].items()
}


async def site_with_key(open_site: OpenSite) -> tuple[Site, str]:
    site = await open_site(database_url=None)  # with a database file, as servers have it
    return site, await site.key("admin")


def test_the_fields_are_found() -> None:
    names = {str(field) for field in FIELDS}
    assert {
        "post /api/v1/training/jobs json dataset_path",
        "post /api/v1/training/jobs json lora_config.target_modules.0",
        "post /v1/chat/completions json messages.0.content",
        "post /v1/completions json logit_bias.*",
        "post /api/v1/datasets form name",
        "post /api/v1/datasets file file",
        "get /api/v1/models/{name} path name",
        "get /api/v1/chat/sessions query before",
        "post /api/v1/training/jobs header Idempotency-Key",
    } <= names
    assert FRAME_SCHEMAS.keys() == FRAMES.keys()


@at_both_sizes
async def test_a_path_in_any_field_of_a_request_is_a_text(open_site: OpenSite, sizes: Sizes) -> None:
    site, key = await site_with_key(open_site)
    with canary(site.services.settings.data_dir) as outside:
        async with site.client(authorization=f"Bearer {key}") as client:
            for number, field in enumerate(FIELDS):
                num_payloads = min(sizes.payloads, sizes.upload_cases if field.where == "file" else 1000)
                for payload in outside.some(number, num_payloads):
                    answer = await client.request(**request(field, payload))
                    assert answer.status_code < 500, (str(field), payload, answer.text)
                    assert SECRET not in answer.text, (str(field), payload)
                    if field.where == "path":
                        assert answer.status_code in (404, 422), (str(field), payload, answer.text)
    assert site.runtime.loaded.keys() <= {"smollm2-135m"}


@at_both_sizes
@pytest.mark.parametrize("kind", FRAMES)
async def test_a_path_in_any_field_of_a_frame_is_a_text(open_site: OpenSite, kind: str, sizes: Sizes) -> None:
    site, key = await site_with_key(open_site)
    with canary(site.services.settings.data_dir) as outside:
        async with served(site) as address:
            for number, place in enumerate(dict.fromkeys(places(FRAME_SCHEMAS[kind], SOCKET_SCHEMA))):
                for payload in outside.some(number, sizes.payloads):
                    frame = put({"type": kind, **FRAMES[kind]}, place, payload)
                    answers = await told(f"ws://{address}/ws/chat", key, frame)
                    assert not any(SECRET in answer for answer in answers), (place, payload)
                    assert '"internal_error"' not in answers[-1], (place, payload, answers)
    assert site.runtime.loaded.keys() <= {"smollm2-135m"}


async def told(url: str, key: str, frame: dict[str, Any]) -> list[str]:
    """Everything up to the frame that ends what was begun."""
    answers: list[str] = []
    async with connect(url, additional_headers={"x-api-key": key}) as socket, asyncio.timeout(20):
        await socket.recv()  # ready
        await socket.send(json.dumps(frame))
        while not answers or json.loads(answers[-1])["type"] not in ("ready", "end", "error"):
            answers.append(str(await socket.recv()))
    return answers


@at_both_sizes
async def test_a_path_for_a_job_on_a_websocket_is_a_text(open_site: OpenSite, sizes: Sizes) -> None:
    site, key = await site_with_key(open_site)
    field = Field("get", "/api/v1/training/jobs/{job_id}", "path", ("job_id",))
    with canary(site.services.settings.data_dir) as outside:
        async with served(site) as address:
            for payload in outside.some(0, sizes.payloads):
                job = request(field, payload)["url"].rpartition("/")[2]
                url = f"ws://{address}/ws/training/{job}"
                try:
                    async with connect(url, additional_headers={"x-api-key": key}) as socket, asyncio.timeout(20):
                        assert '"job_not_found"' in str(await socket.recv()), payload
                except InvalidStatus:  # what holds a slash is another address
                    assert "/" in payload
