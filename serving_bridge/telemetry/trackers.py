"""Loggers that come with Weir: TensorBoard, Weights & Biases, MLflow and trackio get the numbers of every event.

Each is made in the thread of its logger, and opens its run with the first number: a process without any has none.
The packages are optional; one that a run names and that is not there is an error before the run starts.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from learner_jax.runtime import DoorError

#: Name in run.loggers -> (module that it needs, package that has it).
PACKAGES: Mapping[str, tuple[str, str]] = {
    "tensorboard": ("tensorboardX", "tensorboardX"),
    "wandb": ("wandb", "wandb"),
    "mlflow": ("mlflow", "mlflow-skinny"),
    "trackio": ("trackio", "trackio"),
}
TRACKERS: Mapping[str, str] = {
    "tensorboard": "serving_bridge.telemetry.trackers:TensorBoard",
    "wandb": "serving_bridge.telemetry.trackers:WeightsAndBiases",
    "mlflow": "serving_bridge.telemetry.trackers:MLflow",
    "trackio": "serving_bridge.telemetry.trackers:Trackio",
}
_NOT_NUMBERS = frozenset({"t", "process", "event", "step"})
_ODD = re.compile(r"[^A-Za-z0-9_./-]")
_MAX_NAME = 200


def require_packages(names: Sequence[str]) -> None:
    """Raises `DoorError` where a logger that comes with Weir lacks its package; names the command that installs it."""
    for name in names:
        module, package = PACKAGES.get(name, ("", ""))
        if module and importlib.util.find_spec(module) is None:
            raise DoorError(
                f"run.loggers {name!r} needs the package {package}, which is not there: pip install {package}"
            )


def numbers(event: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of an event by name, "event/field"; those in mappings by "event/field/key"."""
    prefix = str(event.get("event"))
    if isinstance(event.get("which"), str):  # held-out skill before and after
        prefix = f"{prefix}/{event['which']}"
    found = _numbers(prefix, {key: value for key, value in event.items() if key not in _NOT_NUMBERS})
    return {_ODD.sub("_", name)[:_MAX_NAME]: value for name, value in found}


def _numbers(prefix: str, values: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _numbers(f"{prefix}/{key}", value)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{prefix}/{key}", float(value)


class Steps:
    """The step that an event belongs to: its own, or how many of its kind there were before."""

    def __init__(self) -> None:
        self._seen: dict[str, int] = {}

    def of(self, event: Mapping[str, Any]) -> int:
        kind, step = str(event.get("event")), event.get("step")
        if isinstance(step, int):
            return step
        self._seen[kind] = self._seen.get(kind, -1) + 1
        return self._seen[kind]


class TensorBoard:
    """Writes to tensorboard/PROCESS in the run's directory."""

    def __init__(self, directory: Path, process: str) -> None:
        self._folder, self._steps = directory / "tensorboard" / process, Steps()
        self._writer: Any = None

    def write(self, event: dict[str, Any]) -> None:
        found, step = numbers(event), self._steps.of(event)
        if not found:
            return
        if self._writer is None:
            self._writer = importlib.import_module("tensorboardX").SummaryWriter(str(self._folder))
        for name, value in found.items():
            self._writer.add_scalar(name, value, step, walltime=event.get("t"))

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


class WeightsAndBiases:
    """One run for each process, in the group of the Weir run; with WANDB_MODE=offline in wandb/ of its directory."""

    def __init__(self, directory: Path, process: str) -> None:
        self._directory, self._process = directory, process
        self._steps = Steps()
        self._run: Any = None

    def write(self, event: dict[str, Any]) -> None:
        found, step = numbers(event), self._steps.of(event)
        if not found:
            return
        if self._run is None:
            self._run = self._opened()
        # An axis of its own: wandb drops what comes with a smaller step than the last, as after a resume.
        self._run.log(found | {f"{event['event']}/step": step})

    def _opened(self) -> Any:
        wandb = importlib.import_module("wandb")
        run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "weir"),
            group=self._directory.name,
            name=f"{self._directory.name}-{self._process}",
            dir=str(self._directory),
            settings=wandb.Settings(console="off", silent=True),
        )
        for kind in ("step", "heldout", "warm_start", "interval", "round", "published", "committed"):
            run.define_metric(f"{kind}/*", step_metric=f"{kind}/step")
        return run

    def close(self) -> None:
        if self._run is not None:
            self._run.finish()


class MLflow:
    """One run for each process, in the experiment of the Weir run; in mlflow/ unless MLFLOW_TRACKING_URI is set."""

    def __init__(self, directory: Path, process: str) -> None:
        self._directory, self._process = directory, process
        self._steps, self._run_id = Steps(), ""
        self._client: Any = None

    def write(self, event: dict[str, Any]) -> None:
        found, step = numbers(event), self._steps.of(event)
        if not found:
            return
        if self._client is None:
            self._client, self._run_id = self._opened()
        entities = importlib.import_module("mlflow.entities")
        at_ms = round(1000 * event.get("t", 0.0))
        metrics = [entities.Metric(name, value, at_ms, step) for name, value in found.items()]
        self._client.log_batch(self._run_id, metrics=metrics)

    def _opened(self) -> tuple[Any, str]:
        # Newer versions refuse a folder without it; a database needs more packages than mlflow-skinny.
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        tracking = importlib.import_module("mlflow.tracking")
        uri = os.environ.get("MLFLOW_TRACKING_URI") or (self._directory / "mlflow").absolute().as_uri()
        client = tracking.MlflowClient(tracking_uri=uri)
        name = self._directory.name
        known = client.get_experiment_by_name(name)
        experiment = known.experiment_id if known is not None else client.create_experiment(name)
        return client, client.create_run(experiment, run_name=self._process).info.run_id

    def close(self) -> None:
        if self._client is not None:
            self._client.set_terminated(self._run_id)


class Trackio:
    """One run for each process, in the project of the Weir run; TRACKIO_DIR says where."""

    def __init__(self, directory: Path, process: str) -> None:
        self._directory, self._process = directory, process
        self._steps = Steps()
        self._run: Any = None

    def write(self, event: dict[str, Any]) -> None:
        found, step = numbers(event), self._steps.of(event)
        if not found:
            return
        if self._run is None:
            trackio = importlib.import_module("trackio")
            # Its own samples of the machine would stand beside each process's.
            own = {"embed": False, "auto_log_cpu": False, "auto_log_gpu": False}
            self._run = trackio.init(project=self._directory.name, name=self._process, **own)
        self._run.log(found, step=step)

    def close(self) -> None:
        if self._run is not None:
            self._run.finish()
