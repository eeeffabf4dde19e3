"""What a run writes of itself."""

from serving_bridge.telemetry.metrics_log import MetricsLog, MetricsTail, Record, read_metrics
from serving_bridge.telemetry.own_loggers import LOGGER_DOOR, Logger, with_loggers
from serving_bridge.telemetry.traces import (
    OpenTelemetrySpans,
    first_span_id,
    open_traces,
    require_opentelemetry,
    trace_id,
)
from serving_bridge.telemetry.trackers import require_packages
from serving_bridge.telemetry.wait_reporter import reported_waits

__all__ = [
    "LOGGER_DOOR",
    "Logger",
    "MetricsLog",
    "MetricsTail",
    "OpenTelemetrySpans",
    "Record",
    "first_span_id",
    "open_traces",
    "read_metrics",
    "reported_waits",
    "require_opentelemetry",
    "require_packages",
    "trace_id",
    "with_loggers",
]
