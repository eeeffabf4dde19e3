"""Traces by OpenTelemetry: one group's way from its prompt to the version that was trained on it.

No process hands a context to another. A group's id gives the ids of its trace and of the trace's first span, so that
worker and learner tell of the same trace, also after a restart. The first span is the worker's; where a group is played
again after a worker died, the trace has two of them.

    group                     the worker: from the claimed prompt to judged answers
      request, score          each request to a replica, each call of the reward
    put                       the worker: until the queue holds the group
    lease, train, publish     the learner: waited for the step's groups, trained, handed the new version on
"""

from __future__ import annotations

import hashlib
import importlib
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from learner_jax.runtime import DoorError

#: Of the task that runs: the group's id and the id of the span around, 0 where the group is not traced.
_current: ContextVar[tuple[str, int] | None] = ContextVar("weir_span", default=None)
_TRACE_BITS, _SPAN_BITS = 128, 64
#: Spans of a process that ends get so long to be sent.
_CLOSE_S = 5.0


def trace_id(group_id: str) -> int:
    """The id of a group's trace."""
    return _number(f"trace {group_id}", _TRACE_BITS)


def first_span_id(group_id: str) -> int:
    """The id of the span that all others of the trace are in."""
    return _number(f"span {group_id}", _SPAN_BITS)


def is_traced(group_id: str, share: float) -> bool:
    """Whether a group is among the share that is traced: all processes agree on it."""
    return _number(f"share {group_id}", _SPAN_BITS) < share * 2**_SPAN_BITS


def _number(text: str, bits: int) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[: bits // 8], "big") or 1


def require_opentelemetry() -> None:
    """Raises `DoorError` where a package for traces is missing; names the command that installs it."""
    try:
        importlib.import_module("opentelemetry.sdk.trace")
        importlib.import_module("opentelemetry.exporter.otlp.proto.http.trace_exporter")
    except ImportError as error:
        raise DoorError(
            f"telemetry.traces needs OpenTelemetry, which is not there ({error}): pip install 'weir[otel]'"
        ) from None


def open_traces(*, run: str, process: str, share: float) -> OpenTelemetrySpans:
    """Sends spans by OTLP over HTTP, to what OTEL_EXPORTER_OTLP_ENDPOINT names; http://localhost:4318 by default.

    Raises:
      DoorError: OpenTelemetry is not installed.
    """
    require_opentelemetry()
    sdk: Any = importlib.import_module("opentelemetry.sdk.trace.export")
    otlp: Any = importlib.import_module("opentelemetry.exporter.otlp.proto.http.trace_exporter")
    return OpenTelemetrySpans(sdk.BatchSpanProcessor(otlp.OTLPSpanExporter()), run=run, process=process, share=share)


class OpenTelemetrySpans:
    """Implements `learner_jax.runtime.Spans`. Owns the processor, which sends in a thread of its own.

    Args:
      processor: of OpenTelemetry's SDK; it drops spans rather than wait.
      share: of groups, from 0 to 1.
    """

    def __init__(self, processor: Any, *, run: str, process: str, share: float) -> None:
        sdk: Any = importlib.import_module("opentelemetry.sdk.trace")
        resources: Any = importlib.import_module("opentelemetry.sdk.resources")
        self._api: Any = importlib.import_module("opentelemetry.trace")
        self._sdk, self._processor, self._share = sdk, processor, share
        self._resource = resources.Resource.create(
            {"service.name": "weir", "service.instance.id": process, "weir.run": run}
        )

    @contextmanager
    def group(self, group_id: str) -> Iterator[None]:
        if not is_traced(group_id, self._share):
            yield
            return
        began_s, own = time.time(), first_span_id(group_id)
        token = _current.set((group_id, own))
        try:
            with self._failing(group_id, "group", own, None, began_s, {"weir.group": group_id}):
                yield
        finally:
            _current.reset(token)

    @contextmanager
    def span(self, name: str, **attributes: str | int | float) -> Iterator[None]:
        if (current := _current.get(None)) is None:
            yield
            return
        group_id, parent = current
        own = self._new_id()
        token = _current.set((group_id, own))
        try:
            with self._failing(group_id, name, own, parent, time.time(), attributes):
                yield
        finally:
            _current.reset(token)

    def past(
        self, group_ids: Sequence[str], name: str, began_s: float, ended_s: float, **attributes: str | int | float
    ) -> None:
        for group_id in group_ids:
            if is_traced(group_id, self._share):
                first = first_span_id(group_id)
                self._tell(group_id, name, self._new_id(), first, began_s, ended_s, attributes)

    def close(self) -> None:
        """Sends what is left, for some seconds at most."""
        self._processor.force_flush(int(1000 * _CLOSE_S))
        self._processor.shutdown()

    @contextmanager
    def _failing(
        self, group_id: str, name: str, own: int, parent: int | None, began_s: float, attributes: dict[str, Any]
    ) -> Iterator[None]:
        """A span that says by which kind of error it ended; never the error's text, which may hold a user's."""
        failure = None
        try:
            yield
        except BaseException as error:
            failure = type(error).__name__
            raise
        finally:
            self._tell(group_id, name, own, parent, began_s, time.time(), attributes, failure)

    def _tell(
        self,
        group_id: str,
        name: str,
        own: int,
        parent: int | None,
        began_s: float,
        ended_s: float,
        attributes: dict[str, Any],
        failure: str | None = None,
    ) -> None:
        status = self._api.Status(self._api.StatusCode.ERROR, failure) if failure else self._api.Status()
        self._processor.on_end(
            self._sdk.ReadableSpan(
                name=name,
                context=self._context(group_id, own),
                parent=None if parent is None else self._context(group_id, parent),
                resource=self._resource,
                attributes=attributes,
                kind=self._api.SpanKind.INTERNAL,
                status=status,
                start_time=int(1e9 * began_s),
                end_time=int(1e9 * ended_s),
            )
        )

    def _context(self, group_id: str, span_id: int) -> Any:
        flags = self._api.TraceFlags(self._api.TraceFlags.SAMPLED)
        return self._api.SpanContext(trace_id(group_id), span_id, is_remote=False, trace_flags=flags)

    def _new_id(self) -> int:
        return int.from_bytes(os.urandom(_SPAN_BITS // 8), "big") or 1
