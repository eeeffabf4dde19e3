"""What a process of a run serves to Prometheus: its own figures, and what it can look up for a scrape."""

from __future__ import annotations

import atexit
import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest

from configs.schema import Config
from learner_jax.runtime import WeirError
from serving_bridge.checks import Finding
from serving_bridge.checks import machine as machine_checks
from serving_bridge.database import is_postgres, sqlite_path
from serving_bridge.metrics import (
    METRICS,
    ROLES,
    Exporter,
    Latest,
    Replica,
    ReplicaPages,
    Role,
    advertised,
    port_of,
    write_target,
)
from serving_bridge.queue import TrajectoryQueue
from serving_bridge.telemetry import MetricsLog
from tools.assembly.build import build_keys, build_registry
from tools.assembly.paths import RunPaths

#: Folder in the run's directory that holds a file for Prometheus' file_sd of each process.
TARGETS_FOLDER = "telemetry"
_PAGE, _REPLICAS_PAGE = "/metrics", "/replicas"
#: Between two looks at the queue, however often it is scraped.
_QUEUE_EVERY_S = 5.0
_QUEUE_TIMEOUT_S = 2.0
#: Command -> roles whose ports it needs; a worker's depends on its name, and it has nothing to allocate.
_LISTENS: Mapping[str, Sequence[Role]] = {
    "train": tuple(role for role in ROLES if role != "gateway"),
    "serve": ("fleet",),
    "learner": ("learner",),
    "warm_start": ("learner",),
}


def watched(log: MetricsLog, config: Config, paths: RunPaths, role: Role, process: str) -> MetricsLog:
    """Serves what the log is told from now on, until the process ends, as [telemetry] says.

    Args:
      process: this one's name, unique in the run: train, learner-1, rollout-NAME, fleet-NAME or gateway-0.

    Raises:
      ExporterError: the address is taken.
    """
    settings = config.telemetry
    if not settings.metrics:
        return log
    latest = Latest(METRICS[role])
    latest.take(_settings_event(config))
    registry = CollectorRegistry()
    registry.register(latest)
    ProcessCollector(registry=registry)
    look = QueueLook(config, paths, latest).look if role == "train" else lambda: None

    def page() -> bytes:
        look()
        return generate_latest(registry)

    pages = {_PAGE: page}
    if role == "fleet":
        pages[_REPLICAS_PAGE] = _replica_pages(config, paths, process.removeprefix("fleet-"), latest).page
    first = getattr(settings.port, role)
    port = port_of(first, process) if role in ("learner", "rollout", "gateway") else first
    exporter = Exporter(settings.host, port, pages, setting=f"telemetry.port.{role}")
    log.show_to(latest.take)
    target = paths.directory / TARGETS_FOLDER / f"{process}.json"
    labels = {"weir_run": config.run.name, "weir_role": role, "weir_process": process}
    write_target(target, advertised(settings.host, exporter.port), labels, pages=list(pages))
    atexit.register(_ended, exporter, target)
    return log


def _ended(exporter: Exporter, target: Path) -> None:
    """A process that ended well is nobody's to scrape; the file of one that was killed stays, and it is missed."""
    with contextlib.suppress(OSError):
        target.unlink(missing_ok=True)
    exporter.close()


def _settings_event(config: Config) -> dict[str, object]:
    return {
        "event": "settings",
        "steps": config.learner.steps,
        "groups_per_step": config.learner.groups_per_step,
        "group_size": config.rollout.group_size,
        "max_staleness": config.rollout.max_staleness,
        "replicas": config.serving.replicas,
    }


def _replica_pages(config: Config, paths: RunPaths, fleet: str, latest: Latest) -> ReplicaPages:
    registry, keys = build_registry(paths), build_keys(config, paths)

    def replicas() -> Iterator[Replica]:
        for row in registry.replicas():
            if row.url and row.fleet == fleet:
                with contextlib.suppress(WeirError):  # a key that can't be read stops the fleet itself
                    yield Replica(row.name, row.url, keys.token("inference", row.url, row.start), row.version)

    return ReplicaPages(
        replicas,
        failed=lambda name: latest.take({"event": "page_failed", "replica": name}),
        version_label=config.telemetry.version_label,
    )


class QueueLook:
    """Looks at the queue for a scrape, at most every few seconds; one that can't be read is told as not up."""

    def __init__(
        self, config: Config, paths: RunPaths, latest: Latest, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._paths, self._latest, self._clock = paths, latest, clock
        self._lock = threading.Lock()
        self._next_s = float("-inf")

    def look(self) -> None:
        with self._lock:
            if self._clock() < self._next_s:
                return
            self._latest.take({"event": "queue", **self._counts()})
            self._next_s = self._clock() + _QUEUE_EVERY_S

    def _counts(self) -> dict[str, object]:
        url = self._paths.database
        try:
            if not is_postgres(url) and not sqlite_path(url).is_file():
                return {"up": 0}  # the learner makes it
            queue = TrajectoryQueue(url, blobs=self._paths.blobs, timeout_s=_QUEUE_TIMEOUT_S)
            try:
                found = queue.admin.progress()
            finally:
                queue.close()
        except (WeirError, OSError):
            return {"up": 0}
        return {"up": 1, **vars(found)}


def port_findings(part: str, config: Config) -> Iterator[Finding]:
    """Whether the ports of [telemetry] are free, of all roles for a whole job."""
    settings = config.telemetry
    if not settings.metrics:
        return
    hosts = config.learner.hosts
    first, count = (0, hosts.count) if part == "train" else (max(hosts.index, 0), 1)
    for role in _LISTENS.get(part, ()):
        if port := getattr(settings.port, role):
            first_of, count_of = (first, count) if role == "learner" else (0, 1)
            yield from machine_checks.port_findings(
                settings.host, port + first_of, count_of, setting=f"telemetry.port.{role}"
            )
