"""One answer's way from its prompt to the version trained on it, as a trace of a whole run on real vLLM."""

from __future__ import annotations

import subprocess
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from serving_bridge.telemetry import trace_id
from serving_bridge.telemetry.metrics_log import read_metrics
from tests.conftest import REPOSITORY
from tests.support.otlp import Receiver, otlp_receiver
from tests.support.run_history import RECORDED
from tests.support.whole_jobs import SMALL_DEMO, environment, steps, train_command

pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="OpenTelemetry is not installed")


@pytest.fixture
def collector() -> Iterator[Receiver]:
    with otlp_receiver() as receiver:
        yield receiver


def received(posts: list[tuple[str, bytes]]) -> list[dict[str, Any]]:
    """Every span: trace, name, parent, begin, end, process."""
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    found = []
    for _, body in posts:
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            about = {pair.key: pair.value.string_value for pair in resource.resource.attributes}
            found += [
                {
                    "trace": int.from_bytes(span.trace_id, "big"),
                    "name": span.name,
                    "id": span.span_id,
                    "parent": span.parent_span_id,
                    "began": span.start_time_unix_nano / 1e9,
                    "ended": span.end_time_unix_nano / 1e9,
                    "process": about["service.instance.id"],
                }
                for scope in resource.scope_spans
                for span in scope.spans
            ]
    return found


@pytest.mark.soak
@pytest.mark.timeout(1200)
def test_every_trained_group_is_one_trace_from_prompt_to_published_version(collector: Receiver, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = train_command(
        "demo.toml",
        *SMALL_DEMO,
        f"run.directory={run}",
        "learner.steps=4",
        "evaluation.every=0",
        "telemetry.traces=1.0",
    )
    told = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url}
    done = subprocess.run(
        command, env=environment() | RECORDED | told, capture_output=True, text=True, timeout=900, check=False
    , cwd=REPOSITORY)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    traces: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for span in received(collector.posts):
        traces[span["trace"]].append(span)
    consumed = [record for record in read_metrics(run / "metrics.jsonl") if record["event"] == "consumed"]
    groups = [group for record in consumed for group in record["groups"]]
    assert len(groups) == len(set(groups)) == 16
    for group in groups:
        way = {span["name"]: span for span in sorted(traces[trace_id(group)], key=lambda span: span["began"])}
        assert {"group", "request", "score", "put", "lease", "train", "publish"} == way.keys(), (group, way.keys())
        order = [way[name] for name in ("group", "request", "score", "put", "train", "publish")]
        assert [span["began"] for span in order] == sorted(span["began"] for span in order)
        assert way["score"]["ended"] <= way["group"]["ended"] <= way["put"]["ended"] <= way["train"]["began"]
        assert {way[name]["process"] for name in ("group", "put")} == {"rollout-worker-0"}
        assert {way[name]["process"] for name in ("lease", "train", "publish")} == {"learner-0"}
        inner = [span for span in traces[trace_id(group)] if span["name"] != "group"]
        assert {span["parent"] for span in inner} == {way["group"]["id"]}
    assert len(steps(run)) == 4
