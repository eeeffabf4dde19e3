"""Weir's GRPO step beside google-tunix and TRL: same weights, same batch, fp32, one core.

python -m tools.bench learner [--cases uniform lognormal prefix head] [--sides weir tunix trl] [--json PATH]
python -m tools.bench learner --device gpu --model Qwen3-1.7B

Cases: `uniform`, 16 full rows of 256 tokens, the peers' own default batch; `lognormal`, 64 sequences of up to 256
tokens, most of them short, which the peers pad, once as they are and once at their best flags; `prefix`, 16 answers of
64 tokens to two prompts of 512; `head`, memory of the fused output head against one with all logits. The model is a
Qwen3 of 4 layers, hidden size 256, vocabulary 4096.

Before anything is timed, loss and KL of every side must be what the formula gives for the batch, and gradient norms
must agree. Then every side runs once a round in a fresh process pinned to one core, and reports medians over its steps;
quotients are of CPU time within a round, ranges are over rounds.

The peers' scripts, peer_tunix_step.py and peer_trl_step.py, are looked for in --peers, WEIR_PEERS or ../shared/peers.
The peers themselves are installed into ~/.cache/weir/peers (XDG_CACHE_HOME is respected), several GB, unless
--environments names a folder that has an environment for each.

--device gpu measures Weir alone: how much of the matmul peak of this very GPU a step over packed rows reaches.

Not covered: several devices, sampling, and several cores at once.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import jax
from rich.console import Console

from tools.bench.learner import gpu, head, peers, report
from tools.bench.learner.cases import MODELS, SMALL, PaddedBatch, expected, lognormal, prefix, uniform
from tools.bench.learner.report import Row, Verdict
from tools.bench.learner.sides import (
    BASE_SIDES,
    WEIR,
    Launch,
    Result,
    Runner,
    Side,
    interleaved,
    process_environment,
    run_process,
    sides_of,
)
from tools.bench.timing import bench_parser, console, positive, progress, this_hardware, write_json

#: name -> batch of (vocabulary, seed)
BATCHES: Mapping[str, Callable[[int, int], PaddedBatch]] = {
    "uniform": uniform,
    "lognormal": lognormal,
    "prefix": prefix,
}
HEAD = "head"
CASES = (*BATCHES, HEAD)
#: Where padding and flags matter: peers are measured a second time, at their best.
_TWICE = "lognormal"
#: Of weights and batches; the peers' scripts have the same default.
SEED = 0
#: Steps before the timed ones: the first compiles, the second finds its memory.
WARMUP = 2


@dataclass(frozen=True)
class Case:
    """A batch and who computes on it; `files` by whether the padding is trimmed."""

    name: str
    batch: PaddedBatch
    trimmed: PaddedBatch
    files: Mapping[bool, Path]
    sides: tuple[Side, ...]


def main(argv: Sequence[str]) -> None:
    """Measures, prints tables and aims, and writes them as JSON where asked to.

    Raises:
      BenchmarkError: sides disagree, a peer cannot be had, a process fails, or there is no GPU.
    """
    given = _parse(argv)
    if given.device == "gpu":
        gpu.run(given.model, rows=given.rows, steps=given.steps, json_file=given.json)
        return
    jax.config.update("jax_platforms", "cpu")  # this process only writes batches and reports
    programs = [side for side in BASE_SIDES if side in given.sides]
    batches = [case for case in CASES if case in given.cases and case in BATCHES]
    launch = _launch(programs if batches else [], given)
    hardware = this_hardware()
    out = console()
    if batches:
        pinned = "not pinned" if launch.core is None else f"pinned to core {launch.core}"
        out.print(f"learner: {', '.join(programs)}; {given.rounds} rounds of {given.steps} steps, fp32, {pinned}")
    out.print(str(hardware), highlight=False, soft_wrap=True)
    heads = _heads() if HEAD in given.cases else {}
    with tempfile.TemporaryDirectory() as folder:
        cases = [prepare(name, programs, folder=Path(folder)) for name in batches]
        results = measure(cases, launch, steps=given.steps, rounds=given.rounds, run=run_process)
    rows = {case.name: report.rows(case.name, results[case.name], case.batch.num_tokens) for case in cases}
    flat = [row for of_case in rows.values() for row in of_case]
    verdicts = [*report.verdicts(flat), *(head.verdicts(heads) if heads else [])]
    _show(out, cases, rows, verdicts)
    if given.json is not None:
        settings = {name: getattr(given, name) for name in ("cases", "sides", "rounds", "steps")}
        peers_used = {name: peers.LEARNERS[name].requirements for name in programs if name != WEIR}
        record = {
            "rows": [asdict(row) for row in flat],
            "rounds": {
                name: {side: [asdict(r) for r in rs] for side, rs in of.items()} for name, of in results.items()
            },
            "head": {name: asdict(memory) for name, memory in heads.items()},
            "aims": [asdict(verdict) for verdict in verdicts],
        }
        shared = {
            "seed": SEED,
            "warmup": WARMUP,
            "core": launch.core,
            "model": asdict(SMALL),
            "dtype": "float32",
            "peers": peers_used,
        }
        write_json(given.json, "learner", hardware, settings | shared, record)
        out.print(f"wrote {given.json}", highlight=False)


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = bench_parser("learner", __doc__)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), help="what to measure (default all)")
    parser.add_argument("--sides", nargs="+", choices=BASE_SIDES, default=list(BASE_SIDES), help="who (default all)")
    parser.add_argument("--rounds", type=positive, default=3, help="processes per side and case (default 3)")
    parser.add_argument("--steps", type=positive, default=5, help="timed steps per process (default 5)")
    parser.add_argument("--core", type=int, help="core that every process is pinned to (default the last one)")
    parser.add_argument("--peers", type=Path, metavar="DIR", help="folder of the peers' scripts")
    parser.add_argument("--environments", type=Path, metavar="DIR", help="folder of the peers' environments")
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu", help="gpu: utilisation of Weir alone")
    parser.add_argument("--model", choices=tuple(MODELS), help="with --device gpu (default Qwen3-1.7B)")
    parser.add_argument("--rows", type=positive, help="with --device gpu: rows of 8192 tokens a step (default 4)")
    given = parser.parse_args(argv)
    if given.device == "cpu" and (given.model or given.rows):
        parser.error("--model and --rows are for --device gpu: on a CPU the cases have a small model of their own")
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if given.core is not None and given.core not in cores:
        parser.error(f"--core {given.core}: expected one of {', '.join(map(str, cores)) or 'none on this system'}")
    if given.core is None and cores:
        given.core = cores[-1]
    given.model, given.rows = given.model or "Qwen3-1.7B", given.rows or 4
    return given


def _launch(programs: Sequence[str], given: argparse.Namespace) -> Launch:
    """Finds or installs what the peers need, before anything is measured."""
    wanted = [program for program in programs if program != WEIR]
    scripts = peers.scripts_folder(given.peers, wanted) if wanted else None
    pythons = {name: peers.environment(name, given.environments) for name in wanted}
    return Launch(pythons=pythons, scripts=scripts, core=given.core, seed=SEED)


def prepare(name: str, programs: Sequence[str], *, folder: Path) -> Case:
    """Makes a case's batch and writes it for the processes."""
    batch = BATCHES[name](SMALL.vocab, SEED)
    trimmed = batch.trimmed()
    files = {False: folder / f"{name}.npz", True: folder / f"{name}_trimmed.npz"}
    batch.write(files[False])
    trimmed.write(files[True])
    return Case(name, batch, trimmed, files, tuple(sides_of(programs, best=name == _TWICE)))


def measure(
    cases: Sequence[Case], launch: Launch, *, steps: int, rounds: int, run: Runner
) -> dict[str, dict[str, tuple[Result, ...]]]:
    """Compares all sides of all cases, then times them; by case, side and round.

    Raises:
      BenchmarkError: sides disagree, or a process fails.
    """
    environment = process_environment()
    with progress() as bar:
        task = bar.add_task("comparing", total=(1 + rounds) * sum(len(case.sides) for case in cases))

        def one(case: Case, side: Side, *, warmup: int, steps: int, doing: str) -> Result:
            bar.update(task, description=f"{doing} {case.name}: {side.name}")
            batch = case.trimmed if side.trimmed else case.batch
            command = launch.command(side, SMALL, batch, case.files[side.trimmed], warmup=warmup, steps=steps)
            result = run(command, environment)
            bar.advance(task)
            return result

        for case in cases:
            first = {side.name: one(case, side, warmup=0, steps=1, doing="comparing") for side in case.sides}
            report.check(first, expected(case.batch), case.name)
        return {
            case.name: interleaved(
                case.sides, partial(one, case, warmup=WARMUP, steps=steps, doing="timing"), rounds=rounds
            )
            for case in cases
        }


def _heads() -> dict[str, head.Memory]:
    with progress() as bar:
        bar.add_task("memory of the output head", total=None)
        return head.measure()


def _show(out: Console, cases: Sequence[Case], rows: Mapping[str, Sequence[Row]], verdicts: Sequence[Verdict]) -> None:
    for case in cases:
        batch = case.batch
        title = (
            f"{case.name}: {len(batch.advantages)} sequences, {batch.num_tokens} tokens, padded to {batch.num_slots}; "
            f"median (min-max) over rounds"
        )
        out.print(report.table(title, rows[case.name]))
    if cases:
        out.print(
            f"all sides agree: loss within {report.LOSS_TOLERANCE:g} of the formula, KL and gradient norm "
            f"within {report.TOLERANCE:g} of their size",
            highlight=False,
        )
    for verdict in verdicts:
        out.print(verdict.line, highlight=False, markup=False)
