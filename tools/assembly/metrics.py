"""Where a process of a run writes its events: the run's metrics file, and the loggers of the user's own."""

from __future__ import annotations

from collections.abc import Callable

from configs.schema import Config
from serving_bridge.telemetry import MetricsLog, with_loggers
from tools.assembly.monitoring import watched
from tools.assembly.paths import RunPaths


def metrics_log(config: Config, paths: RunPaths, process: str) -> MetricsLog:
    """The run's events by this process, which run.loggers get, too.

    Raises:
      DoorError: one of run.loggers can't be used.
    """
    return with_loggers(MetricsLog(paths.metrics, process), config.run.loggers, paths.directory, process)


def learner_metrics_writer(config: Config, paths: RunPaths, host: int) -> Callable[..., None]:
    """The leader's events are the run's; every other host of the learner keeps a file of its own.

    Raises:
      DoorError: one of run.loggers can't be used.
      ExporterError: the port of its metrics is taken.
    """
    if host == 0:
        return watched(metrics_log(config, paths, "learner"), config, paths, "learner", "learner").write
    process = f"learner-{host}"
    own = MetricsLog(paths.logs / f"{process}.jsonl", process)
    log = with_loggers(own, config.run.loggers, paths.directory, process)
    return watched(log, config, paths, "learner", process).write
