"""One process of a learner of several hosts: python -m tests.support.host_worker JSON.

The real loop, queue, weight store and Orbax, around a model made from a seed. `Spec` says what the JSON may hold.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax._src import compiler

from learner_jax.checkpoints.checkpoints import Checkpoints
from learner_jax.contracts.model import ModelConfig, parse_model_config
from learner_jax.contracts.weights import Payloads
from learner_jax.hosts.hosts import Hosts, connect, ends_at_once
from learner_jax.loop.learner import Learner
from learner_jax.models import abstract_parameters
from learner_jax.settings.learner import HostsSettings, LearnerSettings
from learner_jax.training import objective
from learner_jax.training.engine import Engine
from serving_bridge.queue.consumer import QueueConsumer
from serving_bridge.queue.queue import TrajectoryQueue
from serving_bridge.telemetry.metrics_log import MetricsLog
from serving_bridge.weights.store import WeightStore
from serving_bridge.weights.writer import VersionWriter
from tools.assembly import clear_errors


@dataclasses.dataclass(frozen=True)
class Spec:
    """What one process is told.

    Attributes:
      model: a Hugging Face config.json.
      settings: tables of `LearnerSettings`, `hosts` among them.
      kill_at: (host, event, step) at which that host kills itself with SIGKILL.
      stop_at: (host, step) after which that host asks to stop.
      raise_at: (host, step) at whose record that host raises.
      facts: what hosts compare when they join.
      own_checkpoints: whether each host has a folder of checkpoints of its own, by mistake.
    """

    directory: str
    model: dict[str, Any]
    settings: dict[str, Any]
    timeout_s: float = 60.0
    kill_at: tuple[int, str, int] | None = None
    stop_at: tuple[int, int] | None = None
    raise_at: tuple[int, int] | None = None
    facts: dict[str, dict[str, str]] = dataclasses.field(default_factory=dict)
    own_checkpoints: bool = False


def recorded_reads(source: QueueConsumer) -> list[str]:
    """The groups whose payloads this process reads from now on; grows."""
    ids: list[str] = []
    read = source.read

    def recording(group_ids: Sequence[str]) -> Payloads:
        ids.extend(group_ids)
        return read(group_ids)

    source.read = recording  # type: ignore[method-assign]
    return ids


def random_parameters(config: ModelConfig) -> Any:
    """The same on every host, without a program to compile."""
    rng = np.random.default_rng(3)
    shapes = flatten_dict(abstract_parameters(config), sep=".")
    flat = {
        path: rng.normal("norm" in path, 0.05 if "norm" in path else 0.2, leaf.shape).astype(np.float32)
        for path, leaf in shapes.items()
    }
    return unflatten_dict(flat, sep=".")


def train(spec: Spec, hosts: Hosts) -> None:
    settings = LearnerSettings.model_validate(spec.settings)
    directory = Path(spec.directory)
    config = parse_model_config(spec.model, origin="test")
    engine = Engine(settings, config, objective=objective.reinforcement(settings.loss), temperature=1.0, hosts=hosts)
    metrics = MetricsLog(directory / f"host-{hosts.index}.jsonl", f"learner-{hosts.index}")
    completed = 0

    def log(event: str, **fields: Any) -> None:
        nonlocal completed
        metrics.write(event, **fields)
        if event == "step":
            completed = fields["step"]
            if spec.raise_at == (hosts.index, completed):
                raise RuntimeError(f"raised at step {completed}")
        if spec.kill_at == (hosts.index, event, fields.get("step")):
            os.kill(os.getpid(), signal.SIGKILL)

    queue = TrajectoryQueue(directory / "state.db")
    read_ids = recorded_reads(queue.consumer)
    folder = f"checkpoints-{hosts.index}" if spec.own_checkpoints else "checkpoints"
    checkpoints = Checkpoints(directory / folder, keep=2)
    learner = Learner(
        engine,
        random_parameters(config),
        seed=0,
        source=queue.consumer,
        publisher=VersionWriter(WeightStore(directory / "weights", "test")),
        checkpoints=checkpoints,
        golden_prompts=[[1, 2, 3, 4], [5, 6]],
        max_staleness=100,
        log=log,
        should_stop=lambda: (
            spec.stop_at is not None and spec.stop_at[0] == hosts.index and completed >= spec.stop_at[1]
        ),
    )
    hosts.log_failures(log)
    with hosts.telling():
        outcome = learner.run()
    checkpoints.close()
    metrics.write("read", ids=read_ids)
    metrics.write("outcome", reason=outcome.reason, completed=outcome.position.completed_steps)
    metrics.write("compilations", count=engine.num_compilations())


def let_followers_cache() -> None:
    """Has this process keep what it compiles: JAX has process 0 alone do that, and its keys are not the others'."""
    write = compiler._cache_write

    def written(*arguments: Any) -> None:
        with mock.patch.object(compiler.distributed.global_state, "process_id", 0):
            write(*arguments)

    compiler._cache_write = written  # type: ignore[assignment]


def main() -> None:
    let_followers_cache()
    fields = json.loads(sys.argv[1])
    for name in ("kill_at", "stop_at", "raise_at"):
        if fields.get(name):
            fields[name] = tuple(fields[name])
    spec = Spec(**fields)
    settings = HostsSettings(**spec.settings.get("hosts", {}))
    with ends_at_once(), clear_errors(), connect(settings, timeout_s=spec.timeout_s, facts=spec.facts) as hosts:
        train(spec, hosts)


if __name__ == "__main__":
    main()
