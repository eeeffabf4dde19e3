"""Learners of several processes, for tests: their settings, their processes, and what they leave behind."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict

from learner_jax.checkpoints.checkpoints import restore_parameters
from serving_bridge.processes import free_port
from serving_bridge.queue.queue import TrajectoryQueue
from serving_bridge.telemetry.metrics_log import read_metrics
from tests.conftest import QUICK_COMPILE, REPOSITORY
from tests.support.forked_python import HOST_JAX, Program, start_python
from tests.support.tiny_model import TINY_JSON
from tests.support.trajectories import make_group

HEARTBEAT_S = 10
TRAINING: dict[str, Any] = {
    "steps": 6,
    "groups_per_step": 4,
    "sequence_length": 8,
    "row_tokens": [16],
    "microbatch_rows": 4,
    "minibatches": 2,
    "max_wait_s": 60,
    "mismatch_versions": 2,
    "mismatch_rows": 4,
    "peak_tflops": 1,
    "optimizer": {"learning_rate": 1e-3},
    "loss": {
        "kl": {"coefficient": 0.01},
        "mismatch": {"truncation": 2.0},
        "policy": {"objective": "decoupled_ppo"},
    },
    "checkpoint": {"every": 2, "keep": 3},
    "mesh": {"data": 1, "fsdp": 4},
}
PLAIN = TRAINING | {"steps": 3, "minibatches": 1, "mismatch_versions": 0, "loss": {}}


def fill(directory: Path, count: int, *, versions: Callable[[int], int] = lambda _: 1, **kinds: Any) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    queue = TrajectoryQueue(directory / "state.db")
    groups = [
        make_group(f"run/{i}", seed=i, version=versions(i), answer_tokens=1 + i % 4, rewards=[0.0, 1.0], **kinds)
        for i in range(count)
    ]
    queue.producer.put([(i, group) for i, group in enumerate(groups)])
    queue.close()


class Processes:
    """The processes of one learner; what they print goes to files beside the run's.

    Args:
      namespace: name of the network namespace that each host runs in.
      environments: variables of single hosts.
      anew: as `forked_python.start_python`.
    """

    def __init__(
        self,
        directory: Path,
        count: int,
        *,
        settings: dict[str, Any],
        num_devices: int = 4,
        model: dict[str, Any] = TINY_JSON,
        start: Sequence[int] | None = None,
        connect_timeout_s: float = 60,
        module: str = "tests.support.host_worker",
        coordinator: str = "",
        namespace: Callable[[int], str] = lambda index: "",
        environments: dict[int, dict[str, str]] | None = None,
        anew: bool = False,
        **told: Any,
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        coordinator = coordinator or f"127.0.0.1:{free_port()}"
        flags = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={num_devices // count} {QUICK_COMPILE}"}
        self._outputs: dict[int, Path] = {}
        self._running: dict[int, Program] = {}
        for index in range(count) if start is None else start:
            hosts = {
                "count": count,
                "index": index,
                "coordinator": coordinator,
                "connect_timeout_s": connect_timeout_s,
                "heartbeat_timeout_s": HEARTBEAT_S,
            }
            told_settings = settings | ({"hosts": hosts} if count > 1 else {})
            spec = {"directory": str(directory), "model": model, "settings": told_settings} | told
            self._outputs[index] = directory / f"output-{index}.txt"
            own = (environments or {}).get(index, {})
            elsewhere = directory / f"host-{index}"
            elsewhere.mkdir(exist_ok=True)
            with self._outputs[index].open("ab") as output:
                self._running[index] = start_python(
                    module,
                    [json.dumps(spec)],
                    cwd=elsewhere if index else REPOSITORY,
                    environment=os.environ | HOST_JAX | flags | own,
                    output=output,
                    namespace=namespace(index),
                    anew=anew,
                )

    def wait(self, timeout_s: float = 500) -> list[int]:
        """Exit statuses in the order of hosts; whatever runs for longer is killed."""
        deadline = time.monotonic() + timeout_s
        try:
            return [p.wait(timeout=max(0.1, deadline - time.monotonic())) for p in self._running.values()]
        finally:
            self.end()

    def pid(self, index: int) -> int:
        return self._running[index].pid

    def signal(self, index: int, number: int) -> None:
        self._running[index].send_signal(number)

    def said(self, text: str, timeout_s: float = 500) -> None:
        """Waits until every host has printed `text`."""
        deadline = time.monotonic() + timeout_s
        while not all(text in self.output(index) for index in self._running):
            assert time.monotonic() < deadline, self._all()
            assert all(process.poll() is None for process in self._running.values()), self._all()
            time.sleep(0.05)

    def end(self) -> None:
        for process in self._running.values():
            process.kill()
            process.wait()

    def _all(self) -> str:
        return "\n".join(self.output(index)[-3000:] for index in self._outputs)

    def wait_for(self, index: int, timeout_s: float = 500) -> int:
        return self._running[index].wait(timeout=timeout_s)

    def output(self, index: int) -> str:
        return self._outputs[index].read_text(errors="replace")

    def finish(self) -> None:
        statuses = self.wait()
        assert set(statuses) == {0}, self._all()


def last_line(processes: Processes, index: int) -> str:
    return processes.output(index).strip().splitlines()[-1]


def records(directory: Path, host: int, event: str) -> list[dict[str, Any]]:
    return [record for record in read_metrics(directory / f"host-{host}.jsonl") if record["event"] == event]


def final(directory: Path) -> dict[Any, np.ndarray]:
    return flatten_dict(restore_parameters(directory / "checkpoints"))


def largest_difference(a: Path, b: Path) -> float:
    """Of all final parameters, relative to the largest of each tensor."""
    first, second = final(a), final(b)
    assert first.keys() == second.keys()
    return max(float(np.abs(first[k] - second[k]).max() / np.abs(second[k]).max()) for k in first)
