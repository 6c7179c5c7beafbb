"""Facts in, Prometheus text out, read back by Prometheus's own parser."""

import pytest
from prometheus_client.parser import text_string_to_metric_families

from mini_claude.runtime.messages import ProcessMemory, ReplyFinished, RequestServed, RuntimeStatus
from mini_claude.runtime.metrics import Metrics
from mini_claude.types import EngineStats, GpuMemory, ModelInfo

NOTHING = RuntimeStatus((), (), {})
BUSY = RuntimeStatus(
    models=(ModelInfo("one", "ready"), ModelInfo("two", "loading")),
    processes=(ProcessMemory("supervisor", 10, 1000), ProcessMemory("engine:one", 11, 2000)),
    engines={
        "one": EngineStats(
            running=2, waiting=3, kv_tokens_used=40, kv_tokens_cached=50, kv_tokens_total=600, preemptions_total=7
        )
    },
    gpus=(GpuMemory(0, "H100", 8, 80),),
)

Series = tuple[str, frozenset[tuple[str, str]]]


def samples(metrics: Metrics, status: RuntimeStatus = NOTHING) -> dict[Series, float]:
    """Every series of an exposition, without the times at which counters were made."""
    families = text_string_to_metric_families(metrics.exposition(status))
    return {
        (sample.name.removeprefix("mini_claude_"), frozenset(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


def series(name: str, **labels: str) -> Series:
    return name, frozenset(labels.items())


def reply(model: str = "one", reason: str = "stop", first: float | None = 0.2) -> ReplyFinished:
    return ReplyFinished(model, reason, 100, 60, 20, 3.0, first)


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


def test_requests_are_counted_and_timed_by_method_route_and_status(metrics: Metrics) -> None:
    metrics.record([RequestServed("GET", "/a/{id}", 200, 0.02), RequestServed("GET", "/a/{id}", 200, 0.04)])
    metrics.record([RequestServed("GET", "/a/{id}", 404, 7.0), RequestServed("POST", "/b", 200, 500.0)])
    found = samples(metrics)
    assert found[series("http_requests_total", method="GET", route="/a/{id}", status="200")] == 2
    assert found[series("http_requests_total", method="GET", route="/a/{id}", status="404")] == 1
    assert found[series("http_requests_total", method="POST", route="/b", status="200")] == 1
    timed = {"method": "GET", "route": "/a/{id}"}
    assert found[series("http_request_seconds_count", **timed)] == 3
    assert found[series("http_request_seconds_sum", **timed)] == pytest.approx(7.06)
    assert found[series("http_request_seconds_bucket", **timed, le="0.025")] == 1
    assert found[series("http_request_seconds_bucket", **timed, le="10.0")] == 3
    assert found[series("http_request_seconds_bucket", method="POST", route="/b", le="120.0")] == 0
    assert found[series("http_request_seconds_bucket", method="POST", route="/b", le="+Inf")] == 1


def test_replies_add_up_whichever_worker_they_came_from(metrics: Metrics) -> None:
    metrics.record([reply()])
    metrics.record([reply(), reply(reason="error", first=None), reply("two")])
    found = samples(metrics)
    assert found[series("replies_total", model="one", finish_reason="stop")] == 2
    assert found[series("replies_total", model="one", finish_reason="error")] == 1
    assert found[series("replies_total", model="two", finish_reason="stop")] == 1
    assert found[series("prompt_tokens_total", model="one")] == 300
    assert found[series("cached_prompt_tokens_total", model="one")] == 180
    assert found[series("completion_tokens_total", model="one")] == 60
    assert found[series("reply_seconds_count", model="one")] == 3
    assert found[series("time_to_first_token_seconds_count", model="one")] == 2  # no token came to the third
    assert found[series("time_to_first_token_seconds_sum", model="one")] == pytest.approx(0.4)


def test_gauges_show_the_snapshot(metrics: Metrics) -> None:
    found = samples(metrics, BUSY)
    assert found == {
        series("process_resident_memory_bytes", role="supervisor", pid="10"): 1000,
        series("process_resident_memory_bytes", role="engine:one", pid="11"): 2000,
        series("engine_running_requests", model="one"): 2,
        series("engine_waiting_requests", model="one"): 3,
        series("engine_kv_cache_tokens", model="one", kind="used"): 40,
        series("engine_kv_cache_tokens", model="one", kind="cached"): 50,
        series("engine_kv_cache_tokens", model="one", kind="total"): 600,
        series("engine_preemptions", model="one"): 7,
        series("gpu_memory_bytes", gpu="0", kind="used"): 8,
        series("gpu_memory_bytes", gpu="0", kind="total"): 80,
        series("model_ready", model="one"): 1,
        series("model_ready", model="two"): 0,
    }


def test_what_is_gone_leaves_no_gauge_behind_but_keeps_its_counts(metrics: Metrics) -> None:
    metrics.record([reply()])
    before = samples(metrics)
    assert len(samples(metrics, BUSY)) > len(before)
    assert samples(metrics, NOTHING) == before
    assert before[series("replies_total", model="one", finish_reason="stop")] == 1


def test_more_traffic_makes_no_new_series(metrics: Metrics) -> None:
    facts = [RequestServed("GET", route, 200, 0.1) for route in ("/a/{id}", "unmatched")]
    metrics.record([*facts, reply()])
    names = samples(metrics, BUSY).keys()
    for number in range(200):
        metrics.record([RequestServed(fact.method, fact.route, fact.status, number / 10) for fact in facts])
        metrics.record([ReplyFinished("one", "stop", number, 0, number, number / 10, number / 20)])
    assert samples(metrics, BUSY).keys() == names


def test_no_label_but_the_known_ones_exists(metrics: Metrics) -> None:
    metrics.record([RequestServed("GET", "/a/{id}", 200, 0.1), reply()])
    labels = {label for _, pairs in samples(metrics, BUSY) for label, _ in pairs}
    assert labels == {"method", "route", "status", "model", "finish_reason", "role", "pid", "kind", "gpu", "le"}


def test_every_metric_says_what_it_is_and_whose(metrics: Metrics) -> None:
    metrics.record([RequestServed("GET", "/", 200, 0.1), reply()])
    for family in text_string_to_metric_families(metrics.exposition(BUSY)):
        assert family.name.startswith("mini_claude_")
        assert family.documentation
        assert family.type in {"counter", "gauge", "histogram"}
