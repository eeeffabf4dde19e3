"""One side of the benchmark as processes: started, watched until it has done enough, and ended.

Every run is a fresh start, so each also tells how long a side takes from its launch. Sides take turns, run by run.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from learner_jax.runtime import Waits, printable
from serving_bridge.processes import GuardedProcess, log_tail, process_environment, python_module
from serving_bridge.telemetry import MetricsTail, Record
from tools.bench import BenchmarkError
from tools.bench.end_to_end.figures import Run, run_of
from tools.bench.processes import RoleOf, Sample, Sampler, peer_role, weir_role

WEIR, BASE = "weir", "base"
PEERS = ("trl", "tunix")
SIDES = (WEIR, BASE, *PEERS)

#: between two looks at the processes' CPU time, and at their memory, which costs more
_SAMPLE_S, _MEMORY_S = 0.5, 5.0
_POLL_S = 0.1
#: Weir ends in order: answers are waited for, and the learner's state is saved.
_GRACE_S = 120.0
_CHECKOUT = Path(__file__).resolve().parents[3]
#: Runs a module of this checkout in a peer's environment, whose own packages come first.
_PEER_MAIN = (
    "import runpy, sys; sys.path.append(sys.argv[1]); sys.argv[:3] = sys.argv[2:3]; "
    "runpy.run_module(sys.argv[0], run_name='__main__')"
)


@dataclass(frozen=True)
class Launch:
    """How a run of a side is started; `events` is the file that it writes its steps to."""

    command: list[str]
    environment: Mapping[str, str]
    events: Path
    log: Path
    role_of: RoleOf


def weir_launch(config: str, overrides: Sequence[str], folder: Path, *, checkout: Path | None = None) -> Launch:
    """Weir's job as a user starts it, in the run directory `folder`/run.

    Args:
      checkout: of another Weir; None for this one.
    """
    run = folder / "run"
    given = [*overrides, f"run.directory={run}"]
    command = [*python_module("tools.train"), "--config", config, *(part for o in given for part in ("--set", o))]
    environment = _as_installed(process_environment(os.environ))
    if checkout is not None:  # the working directory too: a run takes a user's own modules from there
        command = ["env", f"--chdir={checkout}", *command]
        environment |= {"PYTHONPATH": str(checkout)}
    return Launch(command, environment, run / "metrics.jsonl", folder / "weir.log", weir_role)


def peer_launch(name: str, python: Path, job: Path, folder: Path, *, threads: int) -> Launch:
    """A peer in its own environment, on as many threads as it may use."""
    module = f"tools.bench.end_to_end.{name}_driver"
    command = [str(python), "-P", "-c", _PEER_MAIN, str(_CHECKOUT), module, str(job)]
    ours = _as_installed(process_environment(os.environ))
    kept = {key: value for key, value in ours.items() if key not in _PYTHONS_OWN}
    return Launch(command, kept | _threads(threads), folder / "events.jsonl", folder / f"{name}.log", peer_role(name))


def _as_installed(environment: dict[str, str]) -> dict[str, str]:
    """Bytecode is kept, as Python does by itself; without it every process compiles all modules anew."""
    return {key: value for key, value in environment.items() if key != "PYTHONDONTWRITEBYTECODE"}


#: of this Python's environment, which is not the peer's
_PYTHONS_OWN = frozenset({"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"})


def _threads(number: int) -> dict[str, str]:
    """Threads that sleep while they wait: spinning ones take the cores that others, or they themselves, need."""
    return {
        "OMP_NUM_THREADS": str(number),
        "OMP_WAIT_POLICY": "PASSIVE",
        "GOMP_SPINCOUNT": "0",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "JAX_PLATFORMS": "cpu",
        "CUDA_VISIBLE_DEVICES": "",
    }


def run_side(
    launch: Launch,
    *,
    steps: int,
    target: float | None,
    limit_s: float,
    say: Callable[[int], None] = lambda step: None,
    clock: Callable[[], float] = time.time,
) -> Run:
    """Runs a side until it has taken so many steps, or has reached the target accuracy; then ends it.

    Args:
      limit_s: longest time that the run may take.
      say: told of every step.
    Raises:
      BenchmarkError: it ended by itself before, or took too long; the message has the end of its log.
    """
    launched = clock()
    process = GuardedProcess(launch.command, env=launch.environment, log_path=launch.log, grace_s=_GRACE_S)
    try:
        seen = _Watch(launch, Sampler(process.pid, launch.role_of, clock=clock), clock)
        with Waits().waiting("the steps of a side", on=str(launch.log), limit_s=limit_s) as wait:
            while not seen.has_done(steps, target):
                if (status := process.poll()) is not None:
                    seen.look()
                    if seen.has_done(steps, target):
                        break
                    raise BenchmarkError(_ended(launch, status))
                wait.sleep(_POLL_S)
                seen.look()
                say(seen.step)
        seen.sample(with_memory=True)
    finally:
        process.terminate()
        process.wait(_GRACE_S + 30)
    return run_of(seen.records, seen.samples, launched=launched)


def _ended(launch: Launch, status: int) -> str:
    return f"a side ended with status {status} before it was done; the end of {launch.log}:\n" + printable(
        log_tail(launch.log, 0), keep_lines=True
    )


class _Watch:
    """What a run has written and used so far."""

    def __init__(self, launch: Launch, sampler: Sampler, clock: Callable[[], float]) -> None:
        self._tail, self._sampler, self._clock = MetricsTail(launch.events), sampler, clock
        self.records: list[Record] = []
        self.samples: list[Sample] = []
        self.step = 0
        self._best = 0.0
        self._sample_at = self._memory_at = 0.0

    def look(self) -> None:
        for record in self._tail.read():
            self.records.append(record)
            if record["event"] == "step":
                self.step = record["step"]
            elif record["event"] == "heldout":
                self._best = max(self._best, record["accuracy"])
        now = self._clock()
        if now >= self._sample_at:
            with_memory = now >= self._memory_at
            self._memory_at = now + _MEMORY_S if with_memory else self._memory_at
            self._sample_at = now + _SAMPLE_S
            self.sample(with_memory=with_memory)

    def sample(self, *, with_memory: bool) -> None:
        self.samples.append(self._sampler.sample(with_memory=with_memory))

    def has_done(self, steps: int, target: float | None) -> bool:
        return self.step >= steps or (target is not None and self._best >= target)
