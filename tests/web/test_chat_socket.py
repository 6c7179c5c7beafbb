"""/ws/chat over a real socket: streaming, stop, resume, and frames that are not what they should be."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

from mini_claude.runtime.messages import RequestServed
from mini_claude.web import json_socket
from mini_claude.web.routes import chat_socket

from .conftest import OpenSite, Site, eventually, served
from .echo_runtime import EchoRuntime

pytestmark = pytest.mark.both_databases


class Talk:
    """A client of /ws/chat."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket

    async def send(self, kind: str, **fields: Any) -> None:
        await self.socket.send(json.dumps({"type": kind, **fields}))

    async def frame(self) -> dict[str, Any]:
        frame: dict[str, Any] = json.loads(await asyncio.wait_for(self.socket.recv(), 5))
        return frame

    async def until(self, *kinds: str) -> list[dict[str, Any]]:
        """Frames up to and with the first of these kinds."""
        frames = [await self.frame()]
        while frames[-1]["type"] not in kinds:
            frames.append(await self.frame())
        return frames

    async def error(self) -> dict[str, Any]:
        frame = await self.frame()
        assert frame["type"] == "error", frame
        return frame


@asynccontextmanager
async def talking(address: str, *, ready: bool = True, **options: Any) -> AsyncIterator[Talk]:
    async with connect(f"ws://{address}/ws/chat", **options) as socket:
        talk = Talk(socket)
        if ready:
            assert (await talk.frame())["type"] == "ready"
        yield talk


def text_of(frames: list[dict[str, Any]]) -> str:
    return "".join(frame["text"] for frame in frames if frame["type"] == "delta")


async def test_a_message_is_answered_and_stored_and_the_next_one_follows(site: Site) -> None:
    async with served(site) as address, talking(address) as talk:
        await talk.send("chat", message="one")
        start, *deltas, end = await talk.until("end", "error")
        assert (start["type"], end["type"]) == ("start", "end")
        assert {start["reply_id"], *(frame["reply_id"] for frame in deltas)} == {end["reply_id"]}
        assert text_of(deltas) == "one"
        numbers = [frame["number"] for frame in deltas]
        assert numbers == sorted(set(numbers))
        assert (end["finish_reason"], end["usage"]["completion_tokens"]) == ("stop", 6)
        await talk.send("chat", message="two", session_id=start["session_id"])
        second = await talk.until("end", "error")
        assert second[0]["session_id"] == start["session_id"]
        assert text_of(second) == "oneonetwo"


async def test_a_turn_can_be_edited_and_answered_again(site: Site) -> None:
    async with served(site) as address, talking(address) as talk:
        await talk.send("chat", message="one")
        first = (await talk.until("end"))[0]
        session_id = first["session_id"]
        await talk.send("chat", message="uno", session_id=session_id, parent_id="")
        edited = await talk.until("end")
        assert text_of(edited) == "uno"
        await talk.send("regenerate", session_id=session_id, parent_id=edited[0]["user_turn_id"])
        again = await talk.until("end")
        assert again[0]["user_turn_id"] == edited[0]["user_turn_id"]
        assert again[0]["reply_id"] != edited[0]["reply_id"]


@pytest.mark.parametrize("end", ["revoked", "expired"])
async def test_a_connection_ends_with_its_key(site: Site, end: str) -> None:
    key = await site.key()
    async with served(site) as address, talking(address, additional_headers={"x-api-key": key}) as talk:
        await talk.send("chat", message="one")
        await talk.until("end")
        if end == "revoked":
            await site.services.keys.revoke((await site.services.keys.list())[0].id)
        else:
            await site.end(key)
        await talk.send("chat", message="two")
        assert (await talk.error())["code"] == "invalid_api_key"
        with pytest.raises(ConnectionClosed) as closed:
            await talk.frame()
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1008


async def paused_site(open_site: OpenSite, **settings: Any) -> Site:
    runtime = EchoRuntime()
    runtime.pause_after = 4
    return await open_site(runtime, **settings)


@pytest.mark.parametrize("named", [True, False])
async def test_stop_ends_a_reply_while_it_runs_and_keeps_its_text(open_site: OpenSite, named: bool) -> None:
    site = await paused_site(open_site)
    async with served(site) as address, talking(address) as talk:
        await talk.send("chat", message="hello")
        start = await talk.frame()
        await talk.until("delta")
        await talk.send("stop", **({"reply_id": start["reply_id"]} if named else {}))
        end = (await talk.until("end", "error"))[-1]
        assert end["finish_reason"] == "abort"
    async with site.client() as client:
        session = (await client.get(f"/api/v1/chat/sessions/{start['session_id']}")).json()
    assert (session["turns"][1]["finish_reason"], session["turns"][1]["status"]) == ("abort", "done")
    assert "hello".startswith(session["turns"][1]["content"])


async def test_a_browser_that_reloads_in_mid_reply_loses_nothing(open_site: OpenSite) -> None:
    site = await paused_site(open_site)
    async with served(site) as address:
        async with talking(address) as talk:
            await talk.send("chat", message="hello")
            start = await talk.frame()
            before = [await talk.frame(), await talk.frame()]
        async with talking(address) as talk:
            await talk.send("resume", reply_id=start["reply_id"], after=before[-1]["number"])
            again = await talk.frame()
            assert (again["type"], again["session_id"]) == ("start", start["session_id"])
            missed = await talk.frame()  # was generated while nobody listened
            site.runtime.valve.set()
            rest = await talk.until("end", "error")
    assert text_of([*before, missed, *rest]) == "hello"
    assert rest[-1]["finish_reason"] == "stop"


async def test_a_finished_reply_can_be_resumed_from_any_number(site: Site) -> None:
    async with served(site) as address, talking(address) as talk:
        await talk.send("chat", message="hello")
        live = await talk.until("end")
        events = [(frame["number"], frame.get("text")) for frame in live[1:]]
        for after in range(live[-1]["number"] + 1):
            await talk.send("resume", reply_id=live[0]["reply_id"], after=after)
            replayed = await talk.until("end", "error")
            expected = [event for event in events if event[0] > after and event[1]]
            assert [(frame["number"], frame["text"]) for frame in replayed[1:-1]] == expected
            assert (replayed[-1]["type"], replayed[-1]["number"]) == ("end", live[-1]["number"])


async def test_the_end_is_sent_again_when_only_the_last_delta_arrived(site: Site) -> None:
    async with served(site) as address, talking(address) as talk:
        await talk.send("chat", message="hello", stop=["o"])
        live = await talk.until("end")
        await talk.send("resume", reply_id=live[0]["reply_id"], after=live[-1]["number"])
        assert [frame["type"] for frame in await talk.until("end", "error")] == ["start", "end"]


async def test_leaving_does_not_stop_the_reply(open_site: OpenSite) -> None:
    site = await paused_site(open_site)
    async with served(site) as address:
        async with talking(address) as talk:
            await talk.send("chat", message="hello")
            start = await talk.frame()
        site.runtime.valve.set()
        await eventually(lambda: not site.runtime.tasks)
        async with site.client() as client:

            async def turns() -> list[dict[str, Any]]:
                session = (await client.get(f"/api/v1/chat/sessions/{start['session_id']}")).json()
                found: list[dict[str, Any]] = session["turns"]
                return found

            async with asyncio.timeout(5):
                while (await turns())[1]["status"] == "running":
                    await asyncio.sleep(0.005)
            assert (await turns())[1]["content"] == "hello"


async def test_replies_run_side_by_side_up_to_a_bound(open_site: OpenSite) -> None:
    site = await paused_site(open_site)
    async with served(site) as address, talking(address) as talk:
        for number in range(chat_socket.MAX_REPLIES):
            await talk.send("chat", message=f"hello {number}")
        await eventually(lambda: len(site.runtime.requests) == chat_socket.MAX_REPLIES)
        await talk.send("chat", message="one too many")
        assert (await talk.until("error"))[-1]["code"] == "too_many_replies"
        site.runtime.valve.set()
        ended = 0
        while ended < chat_socket.MAX_REPLIES:
            ended += (await talk.frame())["type"] == "end"
        await talk.send("chat", message="now")
        assert (await talk.until("end", "error"))[-1]["type"] == "end"


async def test_a_reply_that_breaks_is_an_error_with_its_id(open_site: OpenSite) -> None:
    runtime = EchoRuntime()
    runtime.die_after = 2
    site = await open_site(runtime)
    async with served(site) as address, talking(address) as talk:
        await talk.send("chat", message="hello")
        start = await talk.frame()
        error = (await talk.until("error"))[-1]
    assert (error["code"], error["reply_id"]) == ("engine_died", start["reply_id"])


@pytest.mark.parametrize(
    ("sent", "code", "param"),
    [
        ("{", "invalid_json", None),
        ("", "invalid_json", None),
        (b"\x00\x01", "invalid_json", None),
        ("[]", "invalid_value", "type"),
        ("null", "invalid_value", "type"),
        ('{"type": "shout"}', "invalid_value", "type"),
        ('{"type": ["chat"]}', "invalid_value", "type"),
        ('{"type": "chat"}', "missing_required_parameter", "message"),
        ('{"type": "chat", "message": ""}', "invalid_value", "message"),
        ('{"type": "chat", "message": "  "}', "invalid_value", "message"),
        ('{"type": "chat", "message": "\\ud800"}', "invalid_value", "message"),
        ('{"type": "chat", "message": "x", "temperature": 3}', "invalid_value", "temperature"),
        ('{"type": "chat", "message": "x", "temperature": NaN}', "invalid_value", "temperature"),
        ('{"type": "chat", "message": "x", "colour": 3}', "unknown_parameter", "colour"),
        ('{"type": "chat", "message": "x", "\\ud800": 3}', "invalid_value", None),
        ('{"type": "chat", "message": "x", "model": "../x"}', "model_not_found", "model"),
        ('{"type": "chat", "message": "x", "session_id": "../x"}', "session_not_found", "session_id"),
        ('{"type": "resume", "reply_id": "x"}', "reply_not_found", "reply_id"),
        ('{"type": "resume", "reply_id": "x", "after": -1}', "invalid_value", "after"),
        ('{"type": "stop", "reply_id": "x"}', "reply_not_found", "reply_id"),
        ("[" * 40 + "]" * 40, "invalid_json", None),
    ],
)
async def test_a_bad_frame_gets_an_error_and_the_connection_stays(
    site: Site, sent: str | bytes, code: str, param: str | None
) -> None:
    async with served(site) as address, talking(address) as talk:
        await talk.socket.send(sent)
        error = await talk.error()
        assert (error["code"], error["param"]) == (code, param), error
        assert error["request_id"].startswith("req_")
        await talk.send("chat", message="still here")
        assert text_of(await talk.until("end", "error")) == "still here"


async def test_a_frame_over_the_limit_ends_the_connection(open_site: OpenSite) -> None:
    site = await open_site(max_body_bytes=1024)
    async with served(site) as address, talking(address) as talk:
        await talk.send("chat", message="é" * 600)
        assert (await talk.error())["code"] == "payload_too_large"
        with pytest.raises(ConnectionClosed) as closed:
            await talk.frame()
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1009


@pytest.mark.parametrize("kind", ["key", "token"])
async def test_the_key_may_come_in_a_header_a_subprotocol_or_the_first_message(site: Site, kind: str) -> None:
    key = await (site.key() if kind == "key" else site.token("ada"))
    async with served(site) as address:
        async with talking(address, additional_headers={"authorization": f"Bearer {key}"}):
            pass
        async with talking(address, subprotocols=[Subprotocol("mini-claude"), Subprotocol(key)]) as talk:
            assert talk.socket.subprotocol == "mini-claude"  # the key is not sent back
        async with talking(address, ready=False) as talk:
            await talk.send("auth", key=key)
            assert (await talk.frame())["type"] == "ready"
            await talk.send("chat", message="hello")
            assert text_of(await talk.until("end", "error")) == "hello"


@pytest.mark.parametrize(
    "first",
    ['{"type": "auth", "key": "mc-wrong"}', '{"type": "chat", "message": "hello"}', "{", '{"type": "auth"}', b"\x00"],
)
async def test_nothing_is_done_before_a_good_key(site: Site, first: str | bytes) -> None:
    await site.key()
    async with served(site) as address, talking(address, ready=False) as talk:
        await talk.socket.send(first)
        assert (await talk.error())["code"] == "invalid_api_key"
        with pytest.raises(ConnectionClosed) as closed:
            await talk.frame()
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1008
    assert site.runtime.requests == []


async def test_before_a_good_key_frames_are_small(site: Site) -> None:
    key = await site.key()
    room = json_socket.AUTH_BYTES - len(json.dumps({"type": "auth", "key": key}))
    async with served(site) as address, talking(address, ready=False) as talk:
        await talk.socket.send(" " * room + json.dumps({"type": "auth", "key": key}))
        assert (await talk.frame())["type"] == "ready"
        await talk.socket.send(" " * json_socket.AUTH_BYTES + json.dumps({"type": "auth", "key": key}))
        assert (await talk.frame())["type"] == "ready"
    async with served(site) as address, talking(address, ready=False) as talk:
        await talk.socket.send(" " * (room + 1) + json.dumps({"type": "auth", "key": key}))
        assert (await talk.error())["code"] == "payload_too_large"
        with pytest.raises(ConnectionClosed) as closed:
            await talk.frame()
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1009


async def test_a_client_that_says_nothing_is_sent_away(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_socket, "AUTH_SECONDS", 0.05)
    await site.key()
    async with served(site) as address, talking(address, ready=False) as talk:
        assert (await talk.error())["code"] == "invalid_api_key"


async def test_a_wrong_key_on_an_open_connection_ends_it(site: Site) -> None:
    async with served(site) as address, talking(address) as talk:
        await talk.send("auth", key="any")  # no key exists: nothing to check
        assert (await talk.frame())["type"] == "ready"
        await site.key()
        await talk.send("auth", key="any")
        assert (await talk.error())["code"] == "invalid_api_key"


async def test_another_keys_reply_does_not_exist(site: Site) -> None:
    first, second = await site.key(), await site.key()
    async with served(site) as address:
        async with talking(address, additional_headers={"x-api-key": first}) as talk:
            await talk.send("chat", message="mine")
            start = (await talk.until("end"))[0]
        async with talking(address, additional_headers={"x-api-key": second}) as talk:
            for kind in ("resume", "stop"):
                await talk.send(kind, reply_id=start["reply_id"])
                assert (await talk.error())["code"] == "reply_not_found"
            await talk.send("chat", message="x", session_id=start["session_id"])
            assert (await talk.error())["code"] == "session_not_found"


async def test_a_connection_is_one_fact_with_the_routes_template(site: Site) -> None:
    async with served(site) as address, talking(address) as talk:
        await talk.send("chat", message="hello")
        await talk.until("end")
    await eventually(lambda: any(isinstance(fact, RequestServed) for fact in site.runtime.facts))
    (fact,) = (fact for fact in site.runtime.facts if isinstance(fact, RequestServed))
    assert (fact.method, fact.route, fact.status) == ("WEBSOCKET", "/ws/chat", 101)
