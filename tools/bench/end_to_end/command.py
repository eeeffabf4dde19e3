"""Whole runs: Weir's job beside TRL's GRPOTrainer and Tunix's GRPOLearner, from the same start on the same work.

python -m tools.bench end_to_end [--workload demo] [--sides weir trl] [--rounds 2] [--json PATH]
python -m tools.bench end_to_end --target 0.6 --steps 200        (how long from launch to that held-out accuracy)
python -m tools.bench end_to_end --workload stories --model DIR
python -m tools.bench end_to_end --workload chat --model DIR

demo: two-digit additions, 64 x 8 answers of at most 4 tokens; without --model a supervised start is made first.
stories: `configs/stories.toml` on a small story model, 8 x 8 answers of at most 128 tokens.
chat: short messages by a chat model, prompts of about 60 to 150 tokens, 8 x 8 answers of at most 128 that mostly end by
themselves.

Every side starts anew in every round, in turns; a round begins with another side each. Steps after --skip count. Same
start weights, prompts as token ids, scores, batch, optimizer, learning rate and loss. The first step of every peer is
taken by Weir's learner too, on the peer's own batch: loss and gradient norm must agree. With --first-steps it goes on
to TRL's later batches, from the weights that it has reached itself. Threads of the peers sleep while they wait, since
spinning ones slow them down where cores are shared.

Weir's side is `python -m tools.train` on the shipped configuration; --set changes it. The side "base" is another
checkout of Weir, named by --base. The peers are installed into ~/.cache/weir/peers (XDG_CACHE_HOME is respected),
several GB, unless --environments names a folder that has an environment for each.

Not covered: GPUs, several machines, peers' servers for sampling, and anything that a side does after its last step.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from configs.shipped import shipped_config
from serving_bridge.processes import GuardedProcess, log_tail, process_environment, python_module
from serving_bridge.telemetry import read_metrics
from tools.bench import BenchmarkError
from tools.bench.end_to_end import report
from tools.bench.end_to_end.agreement import FirstStep, require_agreement
from tools.bench.end_to_end.figures import Figures, figures
from tools.bench.end_to_end.sides import BASE, PEERS, SIDES, WEIR, Launch, peer_launch, run_side, weir_launch
from tools.bench.end_to_end.workloads import WORKLOADS, Workload, first_batches, peer_job, resolved, run_overrides
from tools.bench.learner import environment
from tools.bench.timing import bench_parser, console, positive, progress, this_hardware, write_json

_EVALUATE_EVERY = 10
#: Steps that Weir could take beyond those measured, so that its last ones are like any other.
_SPARE_STEPS = 1000
_START_LIMIT_S = 1800.0


@dataclass(frozen=True)
class Plan:
    """What is measured, as the command line says it."""

    name: str
    workload: Workload
    sides: tuple[str, ...]
    rounds: int
    steps: int
    skip: int
    threads: int
    target: float | None
    evaluate_every: int
    limit_s: float
    first_steps: int
    overrides: tuple[str, ...]
    base: Path | None
    pythons: dict[str, Path]


def main(argv: Sequence[str]) -> None:
    """Measures, prints tables, and writes the figures as JSON where asked to.

    Raises:
      BenchmarkError: a first step disagrees, a peer cannot be had, or a side ends before it is done.
    """
    given = _parse(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is ended
    plan = _plan(given)
    hardware, out = this_hardware(), console()
    out.print(str(hardware), highlight=False, soft_wrap=True)
    with _folder(given.work) as folder:
        model = given.model or _taught(plan, folder)
        overrides = run_overrides(plan.workload, model, plan.overrides)
        resolved(plan.workload, overrides)
        results, agreed = measure(plan, overrides, folder)
    _show(out, plan, results, agreed)
    if given.json is not None:
        settings = {
            **{name: getattr(plan, name) for name in ("name", "sides", "rounds", "steps", "skip", "threads", "target")},
            "evaluate_every": plan.evaluate_every,
            "overrides": overrides,
        }
        write_json(given.json, "end_to_end", hardware, settings, _record(results, agreed))
        out.print(f"wrote {given.json}", highlight=False)


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = bench_parser("end_to_end", __doc__)
    parser.add_argument("--workload", choices=tuple(WORKLOADS), default="demo", help="default demo")
    parser.add_argument("--model", type=Path, metavar="DIR", help="Hugging Face folder that all start from")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=[WEIR, "trl"], help="who (default weir trl)")
    parser.add_argument("--base", type=Path, metavar="DIR", help="checkout of the side base")
    parser.add_argument("--environments", type=Path, metavar="DIR", help="folder of the peers' environments")
    parser.add_argument("--rounds", type=positive, default=2, help="runs of each side (default 2)")
    parser.add_argument("--steps", type=positive, help="steps of a run (default by workload)")
    parser.add_argument("--skip", type=positive, help="first steps left out (default by workload)")
    parser.add_argument(
        "--threads", type=positive, default=len(os.sched_getaffinity(0)), help="of a peer (default all)"
    )
    parser.add_argument("--target", type=_share, help="held-out accuracy at which a run ends, such as 0.6")
    parser.add_argument("--evaluate-every", type=positive, metavar="STEPS", help="default 10 with --target, else never")
    parser.add_argument("--limit-minutes", type=positive, default=120, help="longest run of a side (default 120)")
    parser.add_argument(
        "--first-steps", type=positive, default=1, metavar="STEPS", help="of TRL that Weir takes too (default 1)"
    )
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="SECTION.KEY=VALUE")
    parser.add_argument("--work", type=Path, metavar="DIR", help="keep runs and logs in this folder")
    given = parser.parse_args(argv)
    workload = WORKLOADS[given.workload]
    given.steps, given.skip = given.steps or workload.steps, given.skip or workload.skip
    for name in ("model", "base"):
        if (folder := getattr(given, name)) is not None:
            setattr(given, name, folder.absolute())
            if not getattr(given, name).is_dir():
                parser.error(f"--{name}: expected an existing folder, got {str(folder)!r}")
    if given.skip + 2 > given.steps:
        parser.error(f"--skip {given.skip}: expected at least 2 fewer than --steps {given.steps}")
    if given.model is None and not workload.makes_model:
        parser.error(f"--workload {given.workload} starts from a model of yours: name its folder with --model")
    if (BASE in given.sides) != (given.base is not None):
        parser.error("--base names the checkout of the side base: give both or neither")
    return given


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"expected a share between 0 and 1, got {text!r}")
    return value


def _plan(given: argparse.Namespace) -> Plan:
    """Finds or installs what the peers need, before anything is measured."""
    return Plan(
        name=given.workload,
        workload=WORKLOADS[given.workload],
        sides=tuple(dict.fromkeys(given.sides)),
        rounds=given.rounds,
        steps=given.steps,
        skip=given.skip,
        threads=given.threads,
        target=given.target,
        evaluate_every=given.evaluate_every or (_EVALUATE_EVERY if given.target is not None else 0),
        limit_s=60.0 * given.limit_minutes,
        first_steps=min(given.first_steps, given.steps),
        overrides=tuple(given.overrides),
        base=given.base,
        pythons={name: environment(name, given.environments) for name in PEERS if name in given.sides},
    )


@contextmanager
def _folder(given: Path | None) -> Iterator[Path]:
    """Where runs and logs go: a folder that stays if the user named it."""
    if given is not None:
        given.mkdir(parents=True, exist_ok=True)
        yield Path(tempfile.mkdtemp(prefix="end_to_end-", dir=given.absolute()))
        return
    with tempfile.TemporaryDirectory(prefix="end_to_end-") as folder:
        yield Path(folder)


def _taught(plan: Plan, folder: Path) -> Path:
    """The model of a supervised start, which all sides begin from."""
    run = folder / "start"
    given = [f"run.directory={run}", *plan.overrides]
    command = [*python_module("tools.learner"), "--config", plan.workload.config, "--warm-start"]
    command += [part for override in given for part in ("--set", override)]
    log = folder / "start.log"
    with progress() as bar:
        bar.add_task("supervised start", total=None)
        process = GuardedProcess(command, env=process_environment(os.environ), log_path=log, grace_s=10)
        try:
            status = process.wait(_START_LIMIT_S)
        finally:
            process.kill()
    if status:
        raise BenchmarkError(f"the supervised start ended with status {status}:\n{log_tail(log, 0)}")
    return run / "start_model"


def measure(
    plan: Plan, overrides: Sequence[str], folder: Path
) -> tuple[dict[str, list[Figures]], dict[str, dict[str, list[FirstStep]]]]:
    """Runs every side once a round; returns figures by side and round, and first steps by peer and who took them."""
    results: dict[str, list[Figures]] = {side: [] for side in plan.sides}
    agreed: dict[str, dict[str, list[FirstStep]]] = {}
    with progress() as bar:
        for number in range(plan.rounds):
            first = number % len(plan.sides)
            for side in plan.sides[first:] + plan.sides[:first]:
                place = folder / f"{side}-{number}"
                place.mkdir()
                results[side].append(_one(plan, side, overrides, place, bar, number))
                if side in PEERS and side not in agreed:
                    agreed[side] = _agreement(plan, side, overrides, place)
    return results, agreed


def _one(plan: Plan, side: str, overrides: Sequence[str], place: Path, bar: Progress, number: int) -> Figures:
    task = bar.add_task(f"round {number + 1} of {plan.rounds}: {report.LABELS[side]}", total=plan.steps)
    run = run_side(
        _launch(plan, side, overrides, place),
        steps=plan.steps,
        target=plan.target,
        limit_s=plan.limit_s,
        say=lambda step: bar.update(task, completed=step),
    )
    bar.remove_task(task)
    return figures(run, skip=plan.skip, last=plan.steps, target=plan.target)


def _launch(plan: Plan, side: str, overrides: Sequence[str], place: Path) -> Launch:
    if side in PEERS:
        job = peer_job(
            resolved(plan.workload, overrides),
            folder=place,
            steps=plan.steps,
            evaluate_every=plan.evaluate_every,
            threads=plan.threads,
            rows=plan.workload.peer_rows,
            first_steps=plan.first_steps,
        )
        return peer_launch(side, plan.pythons[side], job, place, threads=plan.threads)
    given = [*overrides, f"learner.steps={plan.steps + _SPARE_STEPS}", f"evaluation.every={plan.evaluate_every}"]
    config = shipped_config(plan.workload.config)
    assert config is not None
    return weir_launch(str(config), given, place, checkout=plan.base if side == BASE else None)


def _agreement(plan: Plan, side: str, overrides: Sequence[str], place: Path) -> dict[str, list[FirstStep]]:
    """The first steps as the peer took them and as Weir's learner takes them; the very first must be the same."""
    told = [record for record in read_metrics(place / "events.jsonl") if record["event"] == "first_step"]
    got = [FirstStep(record["loss"], record["grad_norm"]) for record in told]
    module = python_module("tools.bench.end_to_end.agreement")
    command = [*module, *map(str, first_batches(place, len(got))), "--config", plan.workload.config]
    command += [part for override in overrides for part in ("--set", override)]
    done = subprocess.run(
        command, env=process_environment(os.environ), capture_output=True, text=True, check=False, timeout=plan.limit_s
    )
    if done.returncode:
        said = "\n".join(done.stderr.splitlines()[-12:])
        raise BenchmarkError(f"Weir's learner could not take the first step of {side}:\n{said}")
    weir = [FirstStep(**step) for step in json.loads(done.stdout.splitlines()[-1])]
    require_agreement(report.LABELS[side], got[0], weir[0])
    return {side: got, WEIR: weir}


def _show(
    out: Console,
    plan: Plan,
    results: dict[str, list[Figures]],
    agreed: dict[str, dict[str, list[FirstStep]]],
) -> None:
    out.print(f"{plan.name}: steps {plan.skip + 1} to {plan.steps}, {plan.rounds} rounds", highlight=False)
    for side, first in agreed.items():
        for number, (got, weir) in enumerate(zip(first[side], first[WEIR], strict=True), 1):
            which = "first step" if number == 1 else f"step {number}"
            out.print(
                f"{which} of {report.LABELS[side]}: loss {got.loss:.3g} (Weir's learner {weir.loss:.3g}), "
                f"gradient norm {got.grad_norm:.6g} ({weir.grad_norm:.6g})",
                highlight=False,
            )
    out.print(report.sides_table(results))
    out.print(report.processes_table(results))
    if found := report.ratios(results):
        out.print(report.ratios_table(found))
    if (skill := report.skill_table(results, plan.target)) is not None:
        out.print(skill)
    out.print(report.rewards_table(results))


def _record(results: dict[str, list[Figures]], agreed: dict[str, dict[str, list[FirstStep]]]) -> dict[str, Any]:
    return {
        "runs": {side: [asdict(run) for run in runs] for side, runs in results.items()},
        "ratios": {
            side: {name: asdict(value) for name, value in row.items()} for side, row in report.ratios(results).items()
        },
        "first_steps": {
            side: {who: [asdict(step) for step in steps] for who, steps in first.items()}
            for side, first in agreed.items()
        },
    }
