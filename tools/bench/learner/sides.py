"""The sides of the learner benchmark as processes: one fresh, pinned process measures a few steps of one side.

A process prints one JSON line at the end; whoever writes it measures with the same clocks (CPU and wall time of the
process around each step, after the warm-up) and reports loss, KL and gradient norm of the first step.

Not covered: the peers' samplers, data loading and padding, and Weir's packing on the host, all of which happen before.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from tools.bench import BenchmarkError
from tools.bench.learner import peers
from tools.bench.learner.cases import PaddedBatch, Shape

WEIR = "weir"
BASE_SIDES = (WEIR, *peers.LEARNERS)

#: Longest time that one process may take: Weir's slowest took a hundredth of it.
_TIMEOUT_S = 3600.0


@dataclass(frozen=True)
class Side:
    """One row of a table: who computes, on which form of the batch, with which flags of its own."""

    name: str
    program: str
    flags: tuple[str, ...] = ()
    trimmed: bool = False


def sides_of(programs: Sequence[str], *, best: bool) -> list[Side]:
    """Every program as it is; with `best`, peers a second time with their best flags on a trimmed batch.

    Of the flags of the peers' scripts, none was faster on a CPU than the defaults (Tunix without remat, TRL with sdpa;
    its torch.compile fails), so what is left is to cut the padding that no sequence of the batch needs.
    """
    found = [Side(program, program) for program in programs]
    if best:
        found += [Side(f"{program}, best", program, trimmed=True) for program in programs if program != WEIR]
    return found


@dataclass(frozen=True)
class Result:
    """What one process measured: medians per step, and the first step's figures.

    Attributes:
      first_step_s: wall time of the first step, compilation included.
      maxrss_mb: most memory that the process had, in MiB, compilation included.
    """

    step_cpu_ms: float
    step_ms: float
    loss: float
    kl: float
    grad_norm: float
    first_step_s: float
    maxrss_mb: float


#: Runs a command to its end and returns what it measured.
Runner = Callable[[Sequence[str], Mapping[str, str]], Result]


@dataclass(frozen=True)
class Launch:
    """How processes are started; `pythons` by peer, empty for Weir alone, as `scripts` is; `core` None pins nothing."""

    pythons: Mapping[str, Path]
    scripts: Path | None
    core: int | None
    seed: int

    def command(
        self, side: Side, shape: Shape, batch: PaddedBatch, file: Path, *, warmup: int, steps: int
    ) -> list[str]:
        pin = [] if self.core is None else ["--core", str(self.core)]
        numbers = ["--seed", str(self.seed), "--warmup", str(warmup), "--steps", str(steps)]
        if side.program == WEIR:
            module = [sys.executable, "-m", "tools.bench.learner.worker"]
            return [*module, "--batch", str(file), *pin, *shape.flags(), *numbers, *side.flags]
        assert self.scripts is not None
        script = self.scripts / peers.LEARNERS[side.program].script
        driver = [str(self.pythons[side.program]), "-P", str(Path(__file__).with_name("peer_driver.py"))]
        flags = [*shape.flags(), *batch.flags(), *numbers, *side.flags]
        return [*driver, "--script", str(script), "--batch", str(file), *pin, "--", *flags]


def run_process(command: Sequence[str], environment: Mapping[str, str]) -> Result:
    """Raises: BenchmarkError: the process failed, took too long, or printed no figures."""
    try:
        done = subprocess.run(
            command,
            env=dict(environment),
            cwd=peers.REPOSITORY,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        raise BenchmarkError(f"no figures within {_TIMEOUT_S:.0f} s: {' '.join(command)}") from None
    if done.returncode:
        said = "\n".join(done.stderr.splitlines()[-12:])
        raise BenchmarkError(f"a side ended with status {done.returncode}: {' '.join(command)}\n{said}")
    return parse_result(done.stdout, " ".join(command))


def parse_result(stdout: str, what: str) -> Result:
    """The figures of the last line; TRL's script calls the first step what it is, the others call it compile_s.

    Raises:
      BenchmarkError: there is no such line, or a figure is missing or not finite.
    """
    lines = stdout.strip().splitlines()
    try:
        record = json.loads(lines[-1]) if lines else {}
        record.setdefault("first_step_s", record.get("compile_s"))
        result = Result(**{field.name: float(record[field.name]) for field in fields(Result)})
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise BenchmarkError(
            f"expected a JSON line of figures at the end of {what}, got {lines[-1:]}: {error}"
        ) from error
    if not all(math.isfinite(getattr(result, field.name)) for field in fields(Result)):
        raise BenchmarkError(f"a figure is not finite: {what} gave {result}")
    return result


def process_environment() -> dict[str, str]:
    """Ours, with JAX on the CPU, and without what would lead a peer's imports into Weir's packages."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    return kept | {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}


def interleaved(sides: Sequence[Side], run: Callable[[Side], Result], *, rounds: int) -> dict[str, tuple[Result, ...]]:
    """Every side once a round, each round beginning with another one; what it measured, by name and round."""
    results: dict[str, list[Result]] = {side.name: [] for side in sides}
    for i in range(rounds):
        first = i % len(sides)
        for side in [*sides[first:], *sides[:first]]:
            results[side.name].append(run(side))
    return {name: tuple(of_side) for name, of_side in results.items()}
