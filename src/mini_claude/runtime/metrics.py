"""Prometheus metrics of the whole product, kept by the supervisor.

Workers publish facts and hold no counters, so any number of them adds up without shared files, and a worker's
restart loses nothing. Gauges are read from the processes at the moment of a scrape. Labels come from route
templates, model names and process roles only: no client can make a new series.
"""

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from mini_claude.runtime.messages import Fact, ReplyFinished, RequestServed, RuntimeStatus

LATENCY_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)


class Metrics:
    """Counts facts; renders them together with a status snapshot."""

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()
        prefix = "mini_claude"

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"{prefix}_{name}", text, labels, registry=registry)

        def histogram(name: str, text: str, *labels: str) -> Histogram:
            return Histogram(f"{prefix}_{name}", text, labels, registry=registry, buckets=LATENCY_BUCKETS)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"{prefix}_{name}", text, labels, registry=registry)

        self._requests = counter("http_requests", "HTTP requests and WebSockets", "method", "route", "status")
        self._request_seconds = histogram("http_request_seconds", "Duration of HTTP requests", "method", "route")
        self._replies = counter("replies", "Replies by how they ended", "model", "finish_reason")
        self._prompt_tokens = counter("prompt_tokens", "Prompt tokens received", "model")
        self._cached_tokens = counter("cached_prompt_tokens", "Prompt tokens found in the prefix cache", "model")
        self._completion_tokens = counter("completion_tokens", "Tokens generated", "model")
        self._first_token_seconds = histogram("time_to_first_token_seconds", "Request to first token", "model")
        self._reply_seconds = histogram("reply_seconds", "Request to last token", "model")
        self._memory = gauge("process_resident_memory_bytes", "Resident memory", "role", "pid")
        self._running = gauge("engine_running_requests", "Requests being decoded", "model")
        self._waiting = gauge("engine_waiting_requests", "Requests in the queue", "model")
        self._kv_tokens = gauge(
            "engine_kv_cache_tokens", "KV cache: used, cached (idle prefixes), total", "model", "kind"
        )
        self._preemptions = gauge("engine_preemptions", "Preemptions since the engine started", "model")
        self._gpu_memory = gauge("gpu_memory_bytes", "GPU memory: used, total", "gpu", "kind")
        self._models = gauge("model_ready", "1 while the model is loaded and ready", "model")

    def record(self, facts: Iterable[Fact]) -> None:
        """Count what workers published."""
        for fact in facts:
            match fact:
                case RequestServed(method=method, route=route, status=status, seconds=seconds):
                    self._requests.labels(method, route, str(status)).inc()
                    self._request_seconds.labels(method, route).observe(seconds)
                case ReplyFinished(model=model):
                    self._replies.labels(model, fact.finish_reason).inc()
                    self._prompt_tokens.labels(model).inc(fact.prompt_tokens)
                    self._cached_tokens.labels(model).inc(fact.cached_tokens)
                    self._completion_tokens.labels(model).inc(fact.completion_tokens)
                    self._reply_seconds.labels(model).observe(fact.seconds)
                    if fact.first_token_seconds is not None:
                        self._first_token_seconds.labels(model).observe(fact.first_token_seconds)

    def exposition(self, status: RuntimeStatus) -> str:
        """Prometheus text format 0.0.4 of all counters and of this snapshot."""
        for gauge in (
            self._memory,
            self._running,
            self._waiting,
            self._kv_tokens,
            self._preemptions,
            self._gpu_memory,
            self._models,
        ):
            gauge.clear()
        for process in status.processes:
            self._memory.labels(process.role, str(process.pid)).set(process.rss_bytes)
        for model, stats in status.engines.items():
            self._running.labels(model).set(stats.running)
            self._waiting.labels(model).set(stats.waiting)
            self._preemptions.labels(model).set(stats.preemptions_total)
            self._kv_tokens.labels(model, "used").set(stats.kv_tokens_used)
            self._kv_tokens.labels(model, "cached").set(stats.kv_tokens_cached)
            self._kv_tokens.labels(model, "total").set(stats.kv_tokens_total)
        for gpu in status.gpus:
            self._gpu_memory.labels(f"{gpu.index}", "used").set(gpu.used_bytes)
            self._gpu_memory.labels(f"{gpu.index}", "total").set(gpu.total_bytes)
        for info in status.models:
            self._models.labels(info.name).set(info.state == "ready")
        return generate_latest(self._registry).decode()
