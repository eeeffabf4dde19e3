"""What the canary's controller serves to Prometheus, and where it says so."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest

from learner_jax.runtime import PLAIN_NAME
from serving_bridge.canary import CanaryError
from serving_bridge.metrics import METRICS, Exporter, Latest, advertised, write_target

#: Folder in the registry's folder that holds a file for Prometheus' file_sd of each controller.
TARGETS_FOLDER = "telemetry"
_PAGE = "/metrics"


class CanaryMetrics:
    """Takes the controller's events. Without a page to serve them it takes and forgets."""

    def __init__(self) -> None:
        self.latest = Latest(METRICS["canary"])

    def event(self, name: str, **fields: Any) -> None:
        """Takes an event of now; one of a rollout counts its phase."""
        ends = {str(fields.get("phase")): 1} if name == "rollout" else {}
        self.latest.take({"event": name, "t": time.time(), **fields, **ends})

    def standing(self, **fields: Any) -> None:
        """Takes where a rollout stands."""
        self.event("canary", **fields)


def add_metrics_arguments(one: argparse.ArgumentParser) -> None:
    """Adds where `run` serves its metrics."""
    one.add_argument("--name", default="canary", help="unique among the controllers of a registry (default: canary)")
    one.add_argument("--metrics-host", default="127.0.0.1", metavar="H", help="default: loopback")
    one.add_argument("--metrics-port", type=int, default=0, metavar="N", help="default: any free one")
    one.add_argument("--no-metrics", action="store_true", help="serve none")


@contextmanager
def served(root: Path, arguments: argparse.Namespace) -> Iterator[CanaryMetrics]:
    """Metrics of a controller, served at the address that the arguments say; `root` is the registry's folder.

    Raises:
      CanaryError: the name is no plain one.
      ExporterError: the address is taken.
    """
    metrics = CanaryMetrics()
    if arguments.no_metrics:
        yield metrics
        return
    if not PLAIN_NAME.fullmatch(arguments.name):
        raise CanaryError(f"--name {arguments.name!a}: expected letters, digits, dots, dashes and underscores")
    registry = CollectorRegistry()
    registry.register(metrics.latest)
    ProcessCollector(registry=registry)
    pages = {_PAGE: lambda: generate_latest(registry)}
    process = f"{arguments.name}-{arguments.namespace}"
    target = root / TARGETS_FOLDER / f"{process}.json"
    with Exporter(arguments.metrics_host, arguments.metrics_port, pages, setting="--metrics-port") as exporter:
        labels = {"weir_run": arguments.namespace, "weir_role": "canary", "weir_process": process}
        write_target(target, advertised(arguments.metrics_host, exporter.port), labels)
        try:
            yield metrics
        finally:  # of one that is killed the file stays, and it is missed
            with suppress(OSError):
                target.unlink(missing_ok=True)
