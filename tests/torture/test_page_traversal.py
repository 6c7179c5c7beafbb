"""Paths in whatever a browser may tell the page are texts and never files: every text and file of every event."""

from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote

import httpx2
import pytest

from mini_claude.services.identity import LOCAL
from mini_claude.web.page.layout import build_page
from mini_claude.web.page.server import create_page_app
from mini_claude.web.page_line import OWNER_HEADER, ROLE_HEADER

from ..web.conftest import OpenSite
from .payloads import SECRET, Canary, canary
from .sizes import Sizes, at_both_sizes

Event = tuple[int, list[dict[str, Any]]]  # its number, and the components that it reads
VISITOR = {OWNER_HEADER: LOCAL.owner, ROLE_HEADER: LOCAL.role}
TEXTS = ("textbox", "dropdown", "radio", "browserstate", "file")


def events(config: Mapping[str, Any]) -> Iterator[Event]:
    """All that run on the server."""
    components = {each["id"]: each for each in config["components"]}
    for event in config["dependencies"]:
        if event["backend_fn"]:
            yield event["id"], [components[number] for number in event["inputs"]]


def values(components: list[dict[str, Any]], place: int, text: str) -> list[Any]:
    """What a browser would send, with the text in one place."""
    data = [start_of(each) for each in components]
    match components[place]["type"]:
        case "file":
            data[place] = file_of(text)
            if components[place]["props"].get("file_count") == "multiple":
                data[place] = [data[place]]
        case "browserstate":
            data[place] = {name: [text] if isinstance(old, list) else text for name, old in data[place].items()}
        case _:
            data[place] = text
    return data


def file_of(path: str) -> dict[str, Any]:
    """A file as a browser names one that it has uploaded."""
    return {"path": path, "orig_name": path, "meta": {"_type": "gradio.FileData"}}


def start_of(component: dict[str, Any]) -> Any:
    """What a component holds in a browser that has just opened the page."""
    props = component["props"]
    match component["type"]:
        case "browserstate":
            return props["default_value"]
        case "textbox":
            return props.get("value") or ""
        case _:
            return props.get("value")


async def told(client: httpx2.AsyncClient, number: int, data: list[Any]) -> str:
    """What an event answers, up to its end."""
    session = f"s{number}"
    joined = await client.post(
        "/gradio_api/queue/join", json={"fn_index": number, "data": data, "session_hash": session, "trigger_id": None}
    )
    if joined.status_code != 200:
        assert joined.status_code < 500, (number, joined.text)
        return joined.text
    answer = await client.get("/gradio_api/queue/data", params={"session_hash": session})
    assert '"process_completed"' in answer.text, answer.text
    return answer.text


@at_both_sizes
async def test_a_path_in_any_event_is_a_text(
    open_site: OpenSite, sizes: Sizes, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = await open_site(database_url=None)
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(site.services.settings.page_files_dir))  # as its process has it
    app = create_page_app(site.services)
    config = build_page(site.services).get_config_file()
    transport = httpx2.ASGITransport(app)
    asked = 0
    with canary(site.services.settings.data_dir) as outside:
        async with (
            app.router.lifespan_context(app),
            httpx2.AsyncClient(transport=transport, base_url="http://page", headers=VISITOR, timeout=60) as client,
        ):
            for number, components in events(config):
                for place, component in enumerate(components):
                    if component["type"] in TEXTS:
                        for payload in outside.some(number + place, sizes.page_payloads):
                            answer = await told(client, number, values(components, place, payload))
                            assert SECRET not in answer, (number, component["type"], payload)
                            asked += 1
                        data = values(components, place, "")
                        data[place] = file_of(str(outside.path))
                        answer = await told(client, number, data)
                        assert SECRET not in answer, (number, component["type"])
            await files(client, outside)
            for path in site.services.settings.data_dir.rglob("*"):
                assert not path.is_file() or SECRET.encode() not in path.read_bytes(), path
    assert asked >= 90 * sizes.page_payloads
    assert site.runtime.loaded.keys() <= {"smollm2-135m"}


async def files(client: httpx2.AsyncClient, outside: Canary) -> None:
    """The page's own addresses for files."""
    for payload in outside.payloads:
        escaped = quote(payload, safe="").replace(".", "%2E")
        for place in ("/gradio_api/file=", "/static/", "/assets/"):
            answer = await client.get(place + escaped)
            assert answer.status_code != 500, (place, payload)
            assert SECRET not in answer.text, (place, payload)
