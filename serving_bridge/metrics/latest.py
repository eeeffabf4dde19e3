"""The newest values of a process's metrics, from its events; read by a scrape under a lock."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.core import Metric as Family

from serving_bridge.metrics.metric import ANY_EVENT, EACH, Metric

#: Label values of one metric; each is a time series that Prometheus keeps.
MAX_SERIES = 256
_LABEL = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,63}")
_REFUSED = "weir_labels_refused_total"
_GONE = "gone"


class Latest:
    """Takes events, gives metric families; a collector of prometheus_client.

    Label values that are no plain names, and those beyond `MAX_SERIES` of a metric, are left out and counted.
    """

    def __init__(self, metrics: Sequence[Metric]) -> None:
        self._metrics = metrics
        self._by_event: dict[str, list[Metric]] = {}
        for metric in metrics:
            self._by_event.setdefault(metric.event, []).append(metric)
        self._any = self._by_event.pop(ANY_EVENT, [])
        self._lock = threading.Lock()
        self._values: dict[str, dict[tuple[str, ...], float]] = {metric.name: {} for metric in metrics}
        for metric in metrics:
            if metric.kind == "counter" and not metric.labels:
                self._values[metric.name][()] = 0.0

    def take(self, event: Mapping[str, Any]) -> None:
        """Takes one event, as a line of metrics.jsonl holds it, or one without time that no line holds.

        Never waits for more than another call.
        """
        name = event.get("event")
        rows = self._by_event.get(name, []) if isinstance(name, str) else []
        with self._lock:
            for metric in (*rows, *(self._any if "t" in event else ())):
                self._apply(metric, event)
            if name == "replica" and event.get("state") == _GONE:
                self._forget(event.get("replica"))

    def collect(self) -> Iterator[Family]:
        """The families that have values."""
        with self._lock:
            values = {name: dict(found) for name, found in self._values.items()}
        for metric in self._metrics:
            if found := values[metric.name]:
                kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
                family = kind(metric.name, f"{metric.meaning} ({metric.unit})", labels=metric.labels)
                for labels, value in found.items():
                    family.add_metric(labels, value)
                yield family

    def _apply(self, metric: Metric, event: Mapping[str, Any]) -> None:
        values = self._values[metric.name]
        if metric.kind == "gauge" and metric.field:
            self._clear(metric, event, values)
        for labels, value in metric.samples(event):
            if not self._fits(labels, values):
                continue
            key = tuple(map(str, labels))
            if metric.kind == "state":
                for other in [other for other in values if other[:-1] == key[:-1]]:
                    del values[other]
            if metric.kind != "counter":
                values[key] = value
            elif value >= 0:
                values[key] = values.get(key, 0.0) + value

    @staticmethod
    def _clear(metric: Metric, event: Mapping[str, Any], values: dict[tuple[str, ...], float]) -> None:
        """What an event does not measure is no longer known: its older value would be taken for a new one."""
        by = tuple(str(event.get(name)) for name in metric.by)
        if EACH in metric.field.split("."):
            for key in [key for key in values if key[: len(by)] == by]:
                del values[key]
        else:
            values.pop(by, None)

    def _fits(self, labels: tuple[object, ...], values: Mapping[tuple[str, ...], float]) -> bool:
        is_plain = all(isinstance(text, str) and _LABEL.fullmatch(text) for text in labels)
        if is_plain and (len(values) < MAX_SERIES or tuple(map(str, labels)) in values):
            return True
        if _REFUSED in self._values:
            self._values[_REFUSED][()] += 1
        return False

    def _forget(self, replica: object) -> None:
        """Leaves out the values of a replica that is gone; what was counted stays."""
        for metric in self._metrics:
            if metric.kind != "counter" and "replica" in metric.labels:
                place, values = metric.labels.index("replica"), self._values[metric.name]
                for key in [key for key in values if key[place] == replica]:
                    del values[key]
