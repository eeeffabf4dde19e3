"""Traces: worker and learner tell of one trace without handing anything on, and what they tell arrives by OTLP."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from learner_jax.loop.step_record import log_step
from learner_jax.runtime import NO_SPANS, DoorError
from serving_bridge.telemetry import OpenTelemetrySpans, first_span_id, open_traces, require_opentelemetry, trace_id
from serving_bridge.telemetry.traces import is_traced
from tests.support.otlp import Receiver, otlp_receiver

sdk = pytest.importorskip("opentelemetry.sdk.trace.export", reason="OpenTelemetry is not installed")
memory = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter")

RECORD = {"step": 7, "version": 6, "step_s": 9.0, "wait_s": 4.0, "train_s": 3.0, "publish_s": 1.0}


def quiet(event: str, **fields: Any) -> None:
    """Logs nothing."""


def opened(exporter: Any, process: str = "rollout-worker-0", share: float = 1.0) -> OpenTelemetrySpans:
    return OpenTelemetrySpans(sdk.SimpleSpanProcessor(exporter), run="run", process=process, share=share)


async def play(spans: OpenTelemetrySpans, group_id: str) -> None:
    with spans.group(group_id):
        await asyncio.gather(*(request(spans, f"{group_id[-1]}-{index}") for index in range(2)))
        with spans.span("score", answers=2):
            await asyncio.sleep(0)


async def request(spans: OpenTelemetrySpans, replica: str) -> None:
    with spans.span("request", replica=replica):
        await asyncio.sleep(0.001)


def test_one_trace_holds_the_way_of_a_group_through_both_processes() -> None:
    exporter = memory.InMemorySpanExporter()
    worker, learner = opened(exporter), opened(exporter, "learner-0")

    async def both() -> None:
        await asyncio.gather(play(worker, "run/4"), play(worker, "run/5"))

    asyncio.run(both())
    worker.past(["run/4", "run/5"], "put", 10.0, 10.5, groups=2)
    log_step(quiet, learner, RECORD, ["run/4", "run/5"], published_version=7)
    found = [span for span in exporter.get_finished_spans() if span.context.trace_id == trace_id("run/4")]
    assert sorted(span.name for span in found) == [
        "group", "lease", "publish", "put", "request", "request", "score", "train",
    ]  # fmt: skip
    (root,) = [span for span in found if span.parent is None]
    assert (root.name, root.context.span_id) == ("group", first_span_id("run/4"))
    assert {span.parent.span_id for span in found if span is not root} == {root.context.span_id}
    assert {span.attributes["replica"] for span in found if span.name == "request"} == {"4-0", "4-1"}
    assert root.start_time <= min(span.start_time for span in found if span.name in ("request", "score"))
    times = {span.name: (span.start_time, span.end_time) for span in found}
    assert [round((times[name][1] - times[name][0]) / 1e9, 3) for name in ("lease", "train", "publish")] == [4, 3, 1]
    assert times["lease"][1] == pytest.approx(times["train"][0], abs=1e3)
    (published,) = [span for span in found if span.name == "publish"]
    assert dict(published.attributes) == {"step": 7, "version": 6, "published_version": 7}
    assert published.resource.attributes["service.instance.id"] == "learner-0"
    assert len({span.context.span_id for span in exporter.get_finished_spans()}) == 16


def test_a_span_inside_a_span_is_below_it_and_an_error_is_told_by_its_kind_alone() -> None:
    exporter = memory.InMemorySpanExporter()
    spans = opened(exporter)
    with pytest.raises(ValueError, match="secret"), spans.group("run/1"), spans.span("outer"), spans.span("inner"):
        raise ValueError("a user's secret")
    inner, outer, root = exporter.get_finished_spans()
    assert (inner.parent.span_id, outer.parent.span_id) == (outer.context.span_id, root.context.span_id)
    assert {span.status.description for span in (inner, outer, root)} == {"ValueError"}
    assert "secret" not in inner.to_json()


def test_a_share_of_groups_is_traced_and_all_processes_agree_on_it() -> None:
    traced = {index for index in range(2000) if is_traced(f"run/{index}", 0.25)}
    assert 400 < len(traced) < 600
    assert traced <= {index for index in range(2000) if is_traced(f"run/{index}", 0.5)}
    exporter = memory.InMemorySpanExporter()
    spans = opened(exporter, share=0.25)
    groups = [f"run/{index}" for index in range(20)]
    for group_id in groups:
        with spans.group(group_id), spans.span("request"):
            pass
    spans.past(groups, "train", 0.0, 1.0)
    with spans.span("of no group"):
        pass
    expected = sorted(["group", "request", "train"] * len(traced & set(range(20))))
    assert sorted(span.name for span in exporter.get_finished_spans()) == expected


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with otlp_receiver() as receiver:
        yield receiver


def test_spans_arrive_at_a_collector_by_otlp(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.url)
    spans = open_traces(run="run", process="learner-0", share=1.0)
    log_step(quiet, spans, RECORD, ["run/4"], published_version=7)
    spans.close()
    ((path, body),) = receiver.posts
    assert path == "/v1/traces"
    (resource,) = ExportTraceServiceRequest.FromString(body).resource_spans
    told = [span for scope in resource.scope_spans for span in scope.spans]
    assert [span.name for span in told] == ["lease", "train", "publish"]
    assert {span.trace_id for span in told} == {trace_id("run/4").to_bytes(16, "big")}
    assert {span.parent_span_id for span in told} == {first_span_id("run/4").to_bytes(8, "big")}


def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(DoorError, match=r"telemetry\.traces needs OpenTelemetry.*pip install 'weir\[otel\]'"):
        require_opentelemetry()


def test_nothing_is_told_and_nothing_is_imported_where_nothing_is_traced() -> None:
    with NO_SPANS.group("run/1"), NO_SPANS.span("request", answers=2):
        NO_SPANS.past(["run/1"], "put", 0.0, 1.0)
    assert NO_SPANS.group("a") is NO_SPANS.span("b")
