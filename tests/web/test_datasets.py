"""Datasets over HTTP: uploads that stream, what is refused, and who sees what."""

import asyncio
import errno
import hashlib
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx2
import psutil
import pytest

from mini_claude.web import upload
from mini_claude.web.error_handlers import WrongShape
from mini_claude.web.routes.datasets import UPLOAD
from mini_claude.web.upload import UploadForm

from ..torture.payloads import TRAVERSALS
from .conftest import OpenSite, Site, eventually, served, short_processes

pytestmark = pytest.mark.both_databases

PATH = "/api/v1/datasets"
CONTENT = b'["Hi", "Yo"]\n["Hi"]\n'
BOUNDARY = "xYzZY"
FORM = {"content-type": f"multipart/form-data; boundary={BOUNDARY}"}


def part(name: str, content: bytes, extra: str = "") -> bytes:
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{extra}\r\n\r\n'
    return head.encode() + content + b"\r\n"


def form(*parts: bytes) -> bytes:
    return b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()


FILE = part("file", CONTENT, '; filename="My Data.jsonl"')


async def send(
    client: httpx2.AsyncClient, content: bytes = CONTENT, name: str | None = None, file: str = "My Data.jsonl"
) -> httpx2.Response:
    fields = {} if name is None else {"name": name}
    return await client.post(PATH, files={"file": (file, content)}, data=fields)


def left(tmp_path: Path) -> list[str]:
    folder = tmp_path / "datasets"
    return sorted(path.name for path in folder.iterdir() if path.name != ".lock") if folder.exists() else []


async def test_an_upload_says_what_it_is_and_what_is_broken(client: httpx2.AsyncClient) -> None:
    answer = await send(client)
    assert answer.status_code == 201
    dataset = answer.json()
    assert dataset.pop("created_at") > 0
    assert dataset == {
        "name": "my-data",
        "format": "dialogue",
        "container": "jsonl",
        "num_rows": 2,
        "num_broken": 1,
        "problems": [{"row": 2, "line": 2, "reason": "it has no turn of the assistant, so there is nothing to learn"}],
        "sha256": hashlib.sha256(CONTENT).hexdigest(),
        "num_bytes": len(CONTENT),
        "file_name": "My Data.jsonl",
    }
    assert (await client.get(PATH)).json()["datasets"] == [answer.json()]
    assert (await client.get(f"{PATH}/my-data")).json() == answer.json()
    again = await send(client)
    assert (again.status_code, again.json()) == (200, answer.json())


async def test_names_and_contents_meet_as_they_should(client: httpx2.AsyncClient, tmp_path: Path) -> None:
    first = (await send(client, name="one")).json()
    second = await send(client, name="two", file="other.json")
    assert second.status_code == 201
    assert second.json()["sha256"] == first["sha256"]
    other = await send(client, b'["A", "B"]\n', name="one")
    assert (other.status_code, other.json()["error"]["code"]) == (409, "dataset_exists")
    assert left(tmp_path) == [first["sha256"]]
    for name in ("one", "two"):
        assert (await client.delete(f"{PATH}/{name}")).status_code == 204
        assert (await client.get(f"{PATH}/{name}")).status_code == 404
    assert (await client.delete(f"{PATH}/one")).status_code == 404
    assert left(tmp_path) == []


@pytest.mark.parametrize(
    ("body", "headers", "status", "code"),
    [
        (b"{}", {"content-type": "application/json"}, 422, "invalid_form"),
        (b"", {}, 422, "invalid_form"),
        (form(FILE), {"content-type": "multipart/form-data"}, 422, "invalid_form"),
        (form(FILE), {"content-type": f"multipart/form-data; boundary={'x' * 999}"}, 422, "invalid_form"),
        (form(FILE), {"content-type": "multipart/form-data; boundary=other"}, 422, "invalid_form"),
        (b"", FORM, 422, "invalid_form"),
        (FILE, FORM, 422, "invalid_form"),
        (form(FILE)[:-20], FORM, 422, "invalid_form"),
        (form(part("name", b"x")), FORM, 422, "missing_required_parameter"),
        (form(FILE, FILE), FORM, 422, "invalid_form"),
        (form(part("name", b"x"), part("name", b"x"), FILE), FORM, 422, "invalid_form"),
        (form(FILE, part("path", b"x")), FORM, 422, "unknown_parameter"),
        (form(FILE, part("name", b"x" * 1025)), FORM, 422, "invalid_value"),
        (form(FILE, part("name", b"Bad Name")), FORM, 400, "invalid_value"),
        (form(FILE, part("name", b"\xff")), FORM, 400, "invalid_value"),
        (form(part("file", b"", '; filename="a.txt"')), FORM, 400, "unknown_dataset_format"),
        (form(part("file", b"{}\n", '; filename="a.jsonl"')), FORM, 400, "unknown_dataset_format"),
        (form(part("file", b"%PDF-1.7\n", '; filename="a.pdf"')), FORM, 400, "unknown_dataset_format"),
    ],
)
async def test_what_is_no_upload_is_refused_and_leaves_nothing(
    client: httpx2.AsyncClient, tmp_path: Path, body: bytes, headers: dict[str, str], status: int, code: str
) -> None:
    answer = await client.post(PATH, content=body, headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code), answer.text
    assert left(tmp_path) == []


async def test_a_name_may_come_behind_the_file(client: httpx2.AsyncClient) -> None:
    answer = await client.post(PATH, content=form(FILE, part("name", b"late")), headers=FORM)
    assert answer.json()["name"] == "late"


def test_a_form_in_any_pieces_is_the_same() -> None:
    body = form(part("name", b"x-1"), part("file", b"--xYz\r\n--xYzZ\r\n\r\ncontent\r\n", '; filename="a;\\"b.txt"'))
    for size in (1, 2, 3, 7, 50, 1000):
        parsed = UploadForm(FORM["content-type"], UPLOAD)
        for start in range(0, len(body), size):
            parsed.feed(body[start : start + size])
        parsed.close()
        assert parsed.take_content() == [("file", b"--xYz\r\n--xYzZ\r\n\r\ncontent\r\n")]
        assert (parsed.field("name"), parsed.file_names) == ("x-1", {"file": 'a;"b.txt'})


def test_headers_of_parts_are_bounded() -> None:
    for head in ("X-A: " + "x" * 10_000, "\r\n".join(f"X-{i}: y" for i in range(100))):
        parsed = UploadForm(FORM["content-type"], UPLOAD)
        with pytest.raises(WrongShape):
            parsed.feed(f"--{BOUNDARY}\r\n{head}\r\n".encode())


async def test_the_size_limit_is_the_datasets_own(open_site: OpenSite, tmp_path: Path) -> None:
    site = await open_site(max_body_bytes=1024, max_dataset_bytes=5000)
    async with site.client() as client:
        for size, status in ((5000, 201), (5001, 413)):
            answer = await send(client, b'["Hi", "' + b"x" * (size - 11) + b'"]\n')
            assert answer.status_code == status, answer.text
        assert answer.json()["error"]["code"] == "payload_too_large"
        assert "5000" in answer.json()["error"]["message"]
        assert (await client.post(f"{PATH}/x", content=b" " * 2000)).status_code == 413  # everywhere else as ever
        assert (await client.put(PATH, content=b" " * 2000)).status_code == 413
    assert len(left(tmp_path)) == 1


async def test_an_endless_body_is_cut_off(open_site: OpenSite, tmp_path: Path) -> None:
    site = await open_site(max_dataset_bytes=100_000)
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        yield form(FILE)[:-20]
        while True:
            sent += 1
            yield b" " * 10_000

    async with site.client() as client:
        answer = await client.post(PATH, content=endless(), headers=FORM)
    assert answer.status_code == 413
    assert sent < 20
    assert left(tmp_path) == []


async def test_a_client_that_sends_far_too_much_still_gets_to_read_why(open_site: OpenSite) -> None:
    site = await open_site(max_dataset_bytes=100_000)
    async with served(site) as address, httpx2.AsyncClient() as client:
        for body in (b" " * 8_000_000, form(part("file", b" " * 8_000_000, '; filename="a"'))):
            answer = await client.post(f"http://{address}{PATH}", content=body, headers=FORM)
            assert (answer.status_code, answer.json()["error"]["code"]) == (413, "payload_too_large")


async def test_a_full_disk_is_told_and_leaves_nothing(
    client: httpx2.AsyncClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    await send(client, name="before")
    for call in ("write", "fsync"):
        with monkeypatch.context() as patch:
            patch.setattr(os, call, full)
            answer = await send(client, b'["A", "B"]\n', name="after")
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "disk_full")
        assert len(left(tmp_path)) == 1
    assert (await send(client, b'["A", "B"]\n', name="after")).status_code == 201


async def test_a_length_that_cannot_be_is_refused_before_it_comes(open_site: OpenSite) -> None:
    site = await open_site(max_dataset_bytes=100_000)
    async with site.client() as client:
        for length in ("200000", "9" * 30, "-1", "1e3"):
            answer = await client.post(PATH, content=b"", headers=FORM | {"content-length": length})
            assert answer.status_code == 413


async def test_the_quota_is_told_with_its_own_code(open_site: OpenSite, tmp_path: Path) -> None:
    site = await open_site(max_dataset_bytes=2000, dataset_quota_bytes=3000)
    rows = [b'["Hi", "' + character * 1900 + b'"]\n' for character in (b"x", b"y")]
    async with site.client() as client:
        assert (await send(client, rows[0], "one")).status_code == 201
        answer = await send(client, rows[1], "two")
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "dataset_quota_exceeded")
        assert (await send(client, rows[0], "two")).status_code == 201  # the same content costs nothing
    assert len(left(tmp_path)) == 1


async def test_a_large_upload_takes_little_memory_and_no_time_from_others(site: Site) -> None:
    size = 60_000_000
    row = b'["Hi", "' + b"x" * 989 + b'"]\n'

    async def body() -> AsyncIterator[bytes]:
        yield part("file", b"", '; filename="big.jsonl"')[:-2]
        for _ in range(size // 100_000):
            yield row * 100
        yield b"\r\n" + form()

    async with served(site) as address, httpx2.AsyncClient(timeout=120) as client:
        before = psutil.Process().memory_info().rss
        task = asyncio.create_task(client.post(f"http://{address}{PATH}", content=body(), headers=FORM))
        peak = before
        while not task.done():
            peak = max(peak, psutil.Process().memory_info().rss)
            assert (await client.get(f"http://{address}/api/v1/health/live")).status_code == 200
        answer = await task
    assert answer.status_code == 201, answer.text
    assert answer.json()["num_rows"] == size // len(row)
    assert peak - before < 30_000_000


async def test_a_slow_body_is_given_up_with_its_connection(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upload, "IDLE_SECONDS", 0.05)
    async with served(site) as address:
        host, _, port = address.partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        head = f"POST {PATH} HTTP/1.1\r\nhost: {address}\r\ncontent-type: {FORM['content-type']}\r\n"
        writer.write(f"{head}content-length: 100000\r\n\r\n--{BOUNDARY}\r\n".encode())
        answer = await asyncio.wait_for(reader.read(), 5)
        writer.close()
    assert answer.startswith(b"HTTP/1.1 408")
    assert left(tmp_path) == []


async def test_a_client_that_leaves_in_the_middle_leaves_nothing(site: Site, tmp_path: Path) -> None:
    async with served(site) as address:
        host, _, port = address.partition(":")
        _, writer = await asyncio.open_connection(host, int(port))
        head = f"POST {PATH} HTTP/1.1\r\nhost: {address}\r\ncontent-type: {FORM['content-type']}\r\n"
        writer.write(f"{head}content-length: 9000000\r\n\r\n".encode() + FILE + b" " * 2_000_000)
        await writer.drain()
        await eventually(lambda: bool(left(tmp_path)))
        writer.close()
        await eventually(lambda: not left(tmp_path))


async def test_an_upload_needs_the_callers_rights_before_it_is_read(site: Site) -> None:
    await site.key()
    taken = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal taken
        taken += 1
        yield form(FILE)

    async with site.client() as client:
        answer = await client.post(PATH, content=body(), headers=FORM)
    assert answer.status_code == 401
    assert taken == 0


async def test_each_key_sees_its_own_datasets(site: Site) -> None:
    mine, yours = await site.key(), await site.key()
    async with site.client(authorization=f"Bearer {mine}") as me, site.client(authorization=f"Bearer {yours}") as you:
        assert (await send(me)).status_code == 201
        assert (await you.get(PATH)).json() == {"datasets": []}
        for method, path in (("GET", "my-data"), ("DELETE", "my-data"), ("POST", "my-data/preview")):
            answer = await you.request(method, f"{PATH}/{path}", json={} if method == "POST" else None)
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "dataset_not_found")
        assert (await send(you)).status_code == 409
        assert (await send(you, name="yours")).status_code == 201
        assert (await me.delete(f"{PATH}/my-data")).status_code == 204
        assert (await you.post(f"{PATH}/yours/preview", json={})).status_code == 200


async def test_names_never_become_paths(site: Site, tmp_path: Path) -> None:
    outside = tmp_path.parent / f"{tmp_path.name}-canary"
    outside.write_text("tweet")
    payloads = [payload.replace("CANARY", str(outside)) for payload in TRAVERSALS]
    assert len(payloads) >= 200
    async with site.client() as client:
        kept = (await send(client, name="kept")).json()["sha256"]  # so that the content is known and none is read
        before = {path: path.stat().st_mtime_ns for path in (outside, tmp_path)}
        for payload in payloads:
            name = await send(client, name=payload)
            assert (name.status_code, name.json()["error"]["param"]) == (400, "name"), (payload, name.text)
            quoted = payload.replace("\\", "\\\\").replace('"', '\\"').encode()
            file = b'--%b\r\nContent-Disposition: form-data; name="file"; filename="%b"\r\n\r\n' % (
                BOUNDARY.encode(),
                quoted,
            )
            answer = await client.post(PATH, content=form(file + CONTENT + b"\r\n"), headers=FORM)
            assert answer.status_code in (200, 201, 422), (payload, answer.text)
            for method, place in (("GET", ""), ("DELETE", ""), ("POST", "/preview")):
                path = f"{PATH}/{quote(payload, safe='')}{place}"
                asked = await client.request(method, path, json={} if method == "POST" else None)
                assert asked.status_code in (404, 405), (payload, asked.text)
                assert "tweet" not in asked.text
        for payload in payloads[:20]:
            model = await client.post(f"{PATH}/kept/preview", json={"model": payload})
            assert model.status_code == 404
        listed = (await client.get(PATH)).json()["datasets"]
    assert all("/" not in each["file_name"] for each in listed)
    assert outside.read_text() == "tweet"
    assert before == {path: path.stat().st_mtime_ns for path in (outside, tmp_path)}
    assert left(tmp_path) == [kept]


async def test_a_preview_shows_each_token_and_whether_it_is_learned(client: httpx2.AsyncClient) -> None:
    await send(client)
    answer = await client.post(f"{PATH}/my-data/preview", json={"model": "default", "max_length": 64, "num_rows": 1})
    assert answer.status_code == 200, answer.text
    report = answer.json()
    assert report["samples"][0]["tokens"][0] == {"id": 258, "text": "<|user|>", "supervised": False}
    learned = "".join(token["text"] for token in report["samples"][0]["tokens"] if token["supervised"])
    assert learned == "Yo<|end|>"
    assert (report["max_length"], report["num_examples"], report["num_broken"]) == (64, 1, 1)
    assert report["lengths"] == [{"up_to": 8, "num_examples": 1}]
    assert report["estimate"] is None


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"num_rows": 51}, 422, "num_rows"),
        ({"num_rows": -1}, 422, "num_rows"),
        ({"max_length": 7}, 422, "max_length"),
        ({"max_length": True}, 422, "max_length"),
        ({"measure": "yes"}, 422, "measure"),
        ({"training_args": {"output_dir": "/tmp"}}, 422, "training_args.output_dir"),
        ({"lora_config": {"r": 0}}, 422, "lora_config.r"),
        ({"dataset": "x"}, 422, "dataset"),
        ({"model": "nothing"}, 404, "model"),
        ({"max_length": 8}, 400, "name"),
        ({"measure": True}, 400, "measure"),
    ],
)
async def test_a_preview_refuses_by_name(
    client: httpx2.AsyncClient, body: dict[str, Any], status: int, param: str
) -> None:
    await send(client, b'["Hello there", "Yo"]\n')
    answer = await client.post(f"{PATH}/my-data/preview", json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (status, param), answer.text


async def test_data_that_teaches_nothing_has_its_own_code(client: httpx2.AsyncClient) -> None:
    await send(client, b'["Hi"]\n')
    answer = await client.post(f"{PATH}/my-data/preview", json={})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "no_supervised_tokens")


async def test_a_preview_ends_with_its_client(site: Site, tmp_path: Path) -> None:
    async with site.client() as client:
        sha256 = (await send(client)).json()["sha256"]
    path = tmp_path / "datasets" / sha256 / "data.jsonl"
    path.unlink()
    os.mkfifo(path)  # so that it is never read to its end

    async with served(site) as address:
        host, _, port = address.partition(":")
        _, writer = await asyncio.open_connection(host, int(port))
        head = f"POST {PATH}/my-data/preview HTTP/1.1\r\nhost: {address}\r\ncontent-type: application/json\r\n"
        writer.write(f"{head}content-length: 2\r\n\r\n{{}}".encode())
        await eventually(lambda: bool(short_processes()))
        writer.close()
        await eventually(lambda: not short_processes())


async def test_the_description_tells_of_the_form(client: httpx2.AsyncClient) -> None:
    described = (await client.get("/openapi.json")).json()["paths"][PATH]["post"]
    assert "multipart/form-data" in described["requestBody"]["content"]
    assert json.dumps(described).count("binary") == 1
