"""Training jobs over HTTP: what may be submitted, who sees what, and how one is watched."""

import asyncio
import dataclasses
import json
from typing import Any

import httpx2
import peft
import pytest
import transformers
from pydantic import SecretStr
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from mini_claude.data.jobs import JobRepository
from mini_claude.web.routes import training_socket
from mini_claude.web.schemas.training import LoraFields, TrainingFields

from .conftest import OpenSite, Site, served

pytestmark = pytest.mark.both_databases

JOBS = "/api/v1/training/jobs"
ROWS = b'["Hi", "Yo"]\n["What?", "That."]\n'


@pytest.fixture
async def file_site(open_site: OpenSite, shared_database_url: str) -> Site:
    """Jobs need a database that other processes could see."""
    return await open_site(database_url=SecretStr(shared_database_url))


async def upload(client: httpx2.AsyncClient) -> None:
    answer = await client.post("/api/v1/datasets", files={"file": ("rows.jsonl", ROWS)}, data={"name": "rows"})
    assert answer.status_code == 201, answer.text


def job(**fields: Any) -> dict[str, Any]:
    return {"dataset_path": "rows", **fields}


async def submit(client: httpx2.AsyncClient, **fields: Any) -> str:
    answer = await client.post(JOBS, json=job(**fields))
    assert answer.status_code == 201, answer.text
    job_id: str = answer.json()["id"]
    return job_id


async def test_a_job_is_shown_as_it_was_submitted(file_site: Site) -> None:
    async with file_site.client() as client:
        await upload(client)
        fields = {"lora_config": {"r": 4, "target_modules": ["q_proj"]}, "training_args": {"max_steps": 2}}
        job_id = await submit(client, adapter_name="bot", **fields)
        shown = (await client.get(f"{JOBS}/{job_id}")).json()
        assert (shown["state"], shown["adapter_name"], shown["model_name"]) == ("pending", "bot", "smollm2-135m")
        assert (shown["lora_config"]["r"], shown["lora_config"]["target_modules"]) == (4, ["q_proj"])
        assert shown["training_args"]["max_steps"] == 2
        assert (await client.get(JOBS)).json() == {"jobs": [shown]}


@pytest.mark.parametrize(
    ("fields", "status", "param"),
    [
        ({"dataset_path": "../../etc/passwd"}, 404, "dataset_path"),
        ({"dataset_path": "nothing"}, 404, "dataset_path"),
        ({"model_name": "../smollm2"}, 404, "model_name"),
        ({"adapter_name": "../bot"}, 400, "adapter_name"),
        ({"output_dir": "out"}, 422, "output_dir"),
        ({"training_args": {"learning_rate": 0}}, 422, "training_args.learning_rate"),
        ({"training_args": {"learning_rate": "1e-4"}}, 422, "training_args.learning_rate"),
        ({"training_args": {"max_length": 10**9}}, 422, "training_args.max_length"),
        ({"training_args": {"method": "full", "quantization": "int8"}}, 400, "training_args.quantization"),
        ({"training_args": {"method": "full", "objective": "dpo"}}, 400, "training_args.method"),
        (
            {"training_args": {"quantization": "nf4"}, "lora_config": {"use_dora": True}},
            400,
            "lora_config.use_dora",
        ),
        ({"lora_config": {"r": 0}}, 422, "lora_config.r"),
        ({"lora_config": {"target_modules": ["a.b;c"]}}, 422, "lora_config.target_modules.0"),
    ],
)
async def test_what_cannot_be_trained_is_refused_by_name(
    file_site: Site, fields: dict[str, Any], status: int, param: str
) -> None:
    async with file_site.client() as client:
        await upload(client)
        answer = await client.post(JOBS, json=job(**fields))
        assert (answer.status_code, answer.json()["error"]["param"]) == (status, param), answer.text
        assert (await client.get(JOBS)).json() == {"jobs": []}


@pytest.mark.parametrize(
    ("settings", "status"),
    [({"engine": "llama_cpp"}, 400), ({"engine": "auto", "device": "cpu"}, 400), ({"engine": "torch"}, 201)],
)
async def test_an_adapter_that_could_not_be_served_is_not_trained(
    open_site: OpenSite, shared_database_url: str, settings: dict[str, Any], status: int
) -> None:
    site = await open_site(database_url=SecretStr(shared_database_url), **settings)
    async with site.client() as client:
        await upload(client)
        answer = await client.post(JOBS, json=job(lora_config={"use_dora": True}))
        assert answer.status_code == status, answer.text
        if status != 201:
            error = answer.json()["error"]
            assert error["param"] == "lora_config.use_dora"
            assert "set engine to torch" in error["message"]


def foreign(cls: type, ours: type[LoraFields | TrainingFields]) -> list[str]:
    return [field.name for field in dataclasses.fields(cls) if field.name not in ours.model_fields]


async def test_every_other_field_of_peft_and_transformers_is_refused(file_site: Site) -> None:
    """Also those that a later version adds: nothing is passed on that we do not know."""
    refused = [("lora_config", name) for name in foreign(peft.LoraConfig, LoraFields)]
    refused += [("training_args", name) for name in foreign(transformers.TrainingArguments, TrainingFields)]
    assert ("training_args", "output_dir") in refused
    assert ("lora_config", "init_lora_weights") in refused
    async with file_site.client() as client:
        await upload(client)
        for group, name in refused:
            answer = await client.post(JOBS, json=job(**{group: {name: True}}))
            assert (answer.status_code, answer.json()["error"]["code"]) == (422, "unknown_parameter"), (group, name)


async def test_a_key_gives_one_job_and_another_body_is_refused(file_site: Site) -> None:
    async with file_site.client() as client:
        await upload(client)
        headers = {"Idempotency-Key": "k"}
        answers = await asyncio.gather(*(client.post(JOBS, json=job(), headers=headers) for _ in range(20)))
        assert len({answer.json()["id"] for answer in answers}) == 1
        assert sorted(answer.status_code for answer in answers) == [200] * 19 + [201]
        other = await client.post(JOBS, json=job(adapter_name="x"), headers=headers)
        assert (other.status_code, other.json()["error"]["code"]) == (422, "idempotency_key_reused")


async def test_cancel_and_resume(file_site: Site) -> None:
    async with file_site.client() as client:
        await upload(client)
        job_id = await submit(client)
        assert (await client.delete("/api/v1/datasets/rows")).status_code == 409
        assert (await client.delete(f"{JOBS}/{job_id}")).json()["state"] == "cancelled"
        assert (await client.delete(f"{JOBS}/{job_id}")).status_code == 409
        assert (await client.post(f"{JOBS}/{job_id}/resume")).json()["state"] == "pending"
        progress = (await client.get(f"{JOBS}/{job_id}/progress", params={"after": 1})).json()
        assert [event["number"] for event in progress["events"]] == [2, 3]


async def test_somebody_elses_job_does_not_exist(file_site: Site) -> None:
    keys = [await file_site.key(), await file_site.key()]
    async with (
        file_site.client(authorization=f"Bearer {keys[0]}") as owner,
        file_site.client(authorization=f"Bearer {keys[1]}") as other,
    ):
        await upload(owner)
        job_id = await submit(owner)
        for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/resume"), ("GET", "/progress")):
            assert (await other.request(method, f"{JOBS}/{job_id}{path}")).status_code == 404
        assert (await other.get(JOBS)).json() == {"jobs": []}
        assert (await other.post(JOBS, json=job())).status_code == 404  # nor does their data


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_a_database_in_memory_takes_no_jobs(site: Site) -> None:
    async with site.client() as client:
        await upload(client)
        answer = await client.post(JOBS, json=job())
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "database_in_memory")


async def test_the_socket_replays_from_any_number_and_then_follows(file_site: Site) -> None:
    jobs = JobRepository(file_site.services.database)
    async with file_site.client() as client, served(file_site) as address:
        await upload(client)
        job_id = await submit(client)
        url = f"ws://{address.rpartition('/')[2]}/ws/training/{job_id}"
        async with connect(url) as first, connect(f"{url}?after=2") as second:
            assert json.loads(await first.recv())["number"] == 1
            claimed = jobs.claim(1)
            assert claimed is not None
            assert claimed.token is not None
            assert json.loads(await first.recv())["data"] == {"state": "running", "attempt": 1}
            jobs.append(job_id, claimed.token, "progress", {"step": 1})
            assert json.loads(await second.recv())["number"] == 3
            jobs.finish(job_id, claimed.token, "completed", adapter="smollm2-135m:bot@1")
            assert json.loads(await second.recv())["data"]["adapter"] == "smollm2-135m:bot@1"
            assert json.loads(await second.recv()) == {"type": "end", "state": "completed"}
        async with connect(f"ws://{address.rpartition('/')[2]}/ws/training/nothing") as nobody:
            assert json.loads(await nobody.recv())["code"] == "job_not_found"


@pytest.mark.parametrize("noticed", ["while nothing happens", "by the next event"])
@pytest.mark.parametrize("end", ["revoked key", "expired key", "signed out", "disabled user"])
async def test_a_watcher_whose_key_or_token_ends_is_sent_away_as_from_the_chat(
    file_site: Site, monkeypatch: pytest.MonkeyPatch, end: str, noticed: str
) -> None:
    monkeypatch.setattr(training_socket, "WATCH_SECONDS", 0.02 if noticed == "while nothing happens" else 1000.0)
    text = await (file_site.key() if end.endswith("key") else file_site.token("ada"))
    bearer = f"Bearer {text}"
    services, jobs = file_site.services, JobRepository(file_site.services.database)
    async with file_site.client(authorization=bearer) as client, served(file_site) as address:
        await upload(client)
        url = f"ws://{address.rpartition('/')[2]}/ws/training/{await submit(client)}"
        async with connect(url, additional_headers={"authorization": bearer}) as socket, asyncio.timeout(10):
            assert json.loads(await socket.recv())["number"] == 1
            caller = await services.credentials.caller(text)
            if end == "revoked key":
                await services.keys.revoke(caller.owner)
            elif end == "expired key":
                await file_site.end(text)
            elif end == "signed out":
                assert caller.token is not None
                await services.logins.logout(caller.token)
            else:
                await services.users.disable(caller.owner)
            if noticed == "by the next event":
                assert jobs.claim(1) is not None
            assert json.loads(await socket.recv())["code"] == "invalid_api_key"
            with pytest.raises(ConnectionClosed) as closed:
                await socket.recv()
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1008
