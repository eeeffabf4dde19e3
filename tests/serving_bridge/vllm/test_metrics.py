"""The reader of vLLM's metrics beside the one of prometheus_client."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from serving_bridge.vllm.answers import Malformed
from serving_bridge.vllm.client import DEFERRED, VllmClient


def page() -> str:
    """Metrics of every kind that vLLM has, with and without labels, of two engines."""
    registry = CollectorRegistry()
    labels = ("engine", "model_name")
    for engine in ("0", "1"):
        where = (engine, "policy")
        if engine == "0":
            running = Gauge("vllm:num_requests_running", "requests {in batches}", labels, registry=registry)
            tokens = Counter("vllm:generation_tokens", "tokens", labels, registry=registry)
            seconds = Histogram("vllm:e2e_request_latency_seconds", "seconds", labels, registry=registry)
        running.labels(*where).set(3 + int(engine))
        tokens.labels(*where).inc(1e12)
        seconds.labels(*where).observe(float("inf"))
    Gauge("vllm:kv_cache_usage_perc", "share", registry=registry).set(1.5e-05)
    Gauge("process_open_fds", "of Python", registry=registry).set(9)
    return generate_latest(registry).decode()


def read(text: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    async def answer(*_: Any, **__: Any) -> bytes:
        return text.encode()

    client = VllmClient("http://nowhere", None)
    monkeypatch.setattr(client._http, "request", answer)
    return asyncio.run(client.metrics())


def test_every_figure_is_what_prometheus_client_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    text = page()
    expected: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name.startswith("vllm:"):
                expected[sample.name] = expected.get(sample.name, 0.0) + sample.value
    found = read(text, monkeypatch)
    assert found == expected
    assert found["vllm:num_requests_running"] == 7
    assert found["vllm:generation_tokens_total"] == 2e12
    assert found["vllm:kv_cache_usage_perc"] == 1.5e-05
    assert found["vllm:e2e_request_latency_seconds_count"] == 2


def test_what_is_no_number_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Malformed, match="num_requests_running is 'many'"):
        read('vllm:num_requests_running{engine="0"} many\n', monkeypatch)


def test_what_waits_though_there_is_room_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = CollectorRegistry()
    waiting = Gauge("vllm:num_requests_waiting_by_reason", "why", ("engine", "reason"), registry=registry)
    for engine in ("0", "1"):
        waiting.labels(engine, "deferred").set(4)
        waiting.labels(engine, "capacity").set(1)
    found = read(generate_latest(registry).decode(), monkeypatch)
    assert found == {"vllm:num_requests_waiting_by_reason": 10, DEFERRED: 8}
