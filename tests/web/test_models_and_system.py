"""Models, health, metrics and the description of the API."""

import re
import subprocess
import sys

import httpx2

from mini_claude.errors import Unavailable

from .conftest import OpenSite, Site
from .echo_runtime import UNLOADABLE


async def test_models_show_their_state_as_they_are_loaded_and_unloaded(client: httpx2.AsyncClient) -> None:
    before = (await client.get("/api/v1/models")).json()
    assert before["default"] == "smollm2-135m"
    assert {model["state"] for model in before["models"]} == {"available"}
    loaded = await client.post("/api/v1/models/load", json={"model": "smollm2-135m", "dtype": "bfloat16"})
    assert (loaded.json()["state"], loaded.json()["dtype"]) == ("ready", "bfloat16")
    assert (await client.get("/api/v1/models/smollm2-135m")).json()["state"] == "ready"
    unloaded = await client.post("/api/v1/models/unload", json={"model": "smollm2-135m"})
    assert unloaded.json()["state"] == "available"
    again = await client.post("/api/v1/models/unload", json={"model": "smollm2-135m"})
    assert again.status_code == 404


async def test_a_load_that_fails_says_why_and_is_not_worth_a_retry(client: httpx2.AsyncClient) -> None:
    answer = await client.post("/api/v1/models/load", json={"model": UNLOADABLE})
    assert answer.status_code == 422
    assert answer.json()["error"]["code"] == "model_load_failed"
    assert "model.safetensors" in answer.json()["error"]["message"]


async def test_load_options_outside_their_choices_are_refused(client: httpx2.AsyncClient) -> None:
    for change in ({"dtype": "int4"}, {"device": "/dev/sda"}, {"quantization": "int7"}, {"engine": "echo"}):
        answer = await client.post("/api/v1/models/load", json={"model": "smollm2-135m", **change})
        assert answer.status_code == 422
        assert answer.json()["error"]["param"] in change


async def test_unknown_models_are_404(client: httpx2.AsyncClient) -> None:
    assert (await client.get("/api/v1/models/nothing")).status_code == 404
    assert (await client.post("/api/v1/models/load", json={"model": "nothing"})).status_code == 404


async def test_health_is_ready_when_all_parts_answer(client: httpx2.AsyncClient) -> None:
    answer = await client.get("/api/v1/health")
    assert answer.status_code == 200
    body = answer.json()
    assert (body["status"], body["database"], body["supervisor"]) == ("ready", "ok", "ok")
    assert body["default_model_state"] == "available"


async def test_without_a_supervisor_it_is_alive_and_not_ready(client: httpx2.AsyncClient, site: Site) -> None:
    site.runtime.broken = Unavailable("The supervisor does not answer.")
    answer = await client.get("/api/v1/health")
    assert answer.status_code == 503
    assert answer.json()["supervisor"] == "The supervisor does not answer."
    assert (await client.get("/api/v1/health/live")).status_code == 200
    metrics = await client.get("/api/v1/metrics")
    assert (metrics.status_code, metrics.json()["error"]["code"]) == (503, "unavailable")


async def test_metrics_are_prometheus_text(client: httpx2.AsyncClient) -> None:
    answer = await client.get("/api/v1/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert "requests_total 1" in answer.text


async def test_the_description_covers_every_public_route(client: httpx2.AsyncClient) -> None:
    paths = (await client.get("/openapi.json")).json()["paths"]
    assert {"/api/v1/chat/completions", "/v1/chat/completions", "/api/v1/health"} <= set(paths)


async def test_the_docs_page_needs_nothing_from_elsewhere(client: httpx2.AsyncClient) -> None:
    page = (await client.get("/docs")).text
    links = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert len(links) == 3
    for link in links:
        assert (await client.get(link)).status_code == 200


async def test_the_default_model_is_loaded_at_start(open_site: OpenSite) -> None:
    site = await open_site(preload=True)
    async with site.client() as client:
        answer = await client.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": "x"}]})
    assert answer.status_code == 200
    assert "smollm2-135m" in site.runtime.loaded


async def test_a_default_model_that_cannot_be_loaded_does_not_stop_the_server(open_site: OpenSite) -> None:
    site = await open_site(preload=True, default_model=UNLOADABLE)
    async with site.client() as client:
        assert (await client.get("/api/v1/health/live")).status_code == 200


def test_an_api_worker_imports_neither_torch_nor_transformers() -> None:
    program = (
        "import sys, mini_claude.web.api; "
        "found = {'torch', 'transformers', 'numpy', 'peft'} & {name.split('.')[0] for name in sys.modules}; "
        "sys.exit(' '.join(found) or None)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
