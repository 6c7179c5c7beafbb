"""The Grafana dashboard asks for what a real server exposes, by the labels that it has; and no client adds to that."""

import json
import re
import secrets
from collections.abc import Iterator
from typing import Any, Final

import pytest
from fastapi.routing import iter_route_contexts
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from mini_claude.runtime.messages import RuntimeStatus
from mini_claude.runtime.metrics import Metrics
from mini_claude.types import GpuMemory
from mini_claude.web.api import app

from ..conftest import REPOSITORY
from ..end_to_end.clients import NATIVE, OPENAI, ask, openai_stream, web_socket
from ..end_to_end.conftest import Server, serving, until

DASHBOARD: Final = REPOSITORY / "deploy" / "grafana.json"
NUM_PATHS: Final = 300
GPU: Final = RuntimeStatus((), (), {}, (GpuMemory(0, "H100", 8, 80),))  # this machine may have none

Labels = dict[str, set[str]]  # of each sample's name


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that has answered each kind of request."""
    with serving(tmp_path_factory.mktemp("metrics") / "data", engine="echo") as server:
        until(lambda: server.http.get("/api/v1/health").status_code == 200, 30, "it is not ready")
        assert ask(server.url, "hello").status_code == 200
        assert openai_stream(server.url, "hello").ending == "stop"
        assert web_socket(server.url, "hello").ending == "stop"
        assert server.http.post(OPENAI, json={}).status_code == 400
        assert server.http.get("/nowhere").status_code == 404
        yield server


def families(server: Server) -> list[Metric]:
    every = text_string_to_metric_families(server.http.get("/api/v1/metrics").text)
    return [family for family in every if not family.name.endswith("_created")]  # when a counter began


def exposed(server: Server) -> Labels:
    found: Labels = {}
    gpus = (each for each in text_string_to_metric_families(Metrics().exposition(GPU)) if "gpu" in each.name)
    for family in (*families(server), *gpus):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def queries() -> Iterator[tuple[str, set[str]]]:
    """Each query of the dashboard, with the labels that its legend shows."""
    dashboard: dict[str, Any] = json.loads(DASHBOARD.read_text())
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            yield target["expr"], set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["query"], set()


def names_and_labels(query: str) -> tuple[set[str], set[str]]:
    """Metrics of a query, and the labels by which it selects or groups. Enough of PromQL for this dashboard."""
    plain = re.sub(r'"[^"]*"', "", query)
    labels = {name for group in re.findall(r"\bby \(([^)]*)\)", plain) for name in re.split(r",\s*", group)}
    labels |= {name for group in re.findall(r"{([^}]*)}", plain) for name in re.findall(r"(\w+)\s*[=!]", group)}
    labels |= set(re.findall(r"label_values\(\w+, (\w+)\)", plain))
    return set(re.findall(r"\bmini_claude_\w+", plain)), labels


def test_every_metric_and_label_of_the_dashboard_is_exposed(server: Server) -> None:
    found = exposed(server)
    for query, shown in queries():
        names, labels = names_and_labels(query)
        assert names, query
        assert names <= found.keys(), query
        for name in names:
            assert labels | shown <= found[name], query
        if " by (" in query:
            assert shown <= labels, query  # what a sum leaves out cannot be shown


def test_every_metric_is_on_the_dashboard_and_says_what_it_is(server: Server) -> None:
    asked = {name for query, _ in queries() for name in names_and_labels(query)[0]}
    text = server.http.get("/api/v1/metrics").text
    for family in families(server):
        assert any(name.startswith(family.name) for name in asked), family.name
        assert re.search(rf"^# HELP {family.name}\w* \w", text, re.MULTILINE), family.name


def requests_served(server: Server) -> dict[tuple[str, str], float]:
    """How many requests there were, by method and route."""
    found: dict[tuple[str, str], float] = {}
    for sample in (sample for family in families(server) for sample in family.samples):
        if sample.name == "mini_claude_http_requests_total":
            key = sample.labels["method"], sample.labels["route"]
            found[key] = found.get(key, 0) + sample.value
    return found


def test_paths_methods_and_bodies_of_clients_add_no_series(server: Server) -> None:
    """Ten thousand paths are asked for in tests/web/test_errors.py; here, some reach the text that is scraped."""
    word = secrets.token_hex(8)
    for number in range(NUM_PATHS):
        method = ("GET", "POST", "PROPFIND")[number % 3]
        server.http.request(method, f"/{word}/{number}?{word}={number}", headers={"x-word": word})
        if number % 10 == 0:
            server.http.get(f"/v1/models/{word}{number}")
            server.http.post(NATIVE, json={"messages": [], "model": f"{word}{number}"})
    unmatched = {(method, "unmatched") for method in ("GET", "POST", "OTHER")}
    until(lambda: sum(requests_served(server).get(each, 0) for each in unmatched) >= NUM_PATHS, 10, "facts are missing")
    served = requests_served(server)
    assert {each for each in served if each[1] == "unmatched"} == unmatched
    templates = {(context.path or "").replace(":path", "") for context in iter_route_contexts(app.routes)}
    assert {route for _, route in served} <= templates | {"unmatched"}
    assert word not in server.http.get("/api/v1/metrics").text
