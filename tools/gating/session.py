"""One gate from its file to its verdict: fresh problems, both models asked, checks, and more samples where needed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from serving_bridge.settings import ServingSettings
from tools.evaluation import (
    Plan,
    Source,
    Suite,
    Training,
    Watch,
    open_suite,
    overlaps,
    read_measured,
    read_samples,
    run_plan,
)
from tools.gating.checks import Side, Terms, held
from tools.gating.decisions import Outcome, worst
from tools.gating.errors import GateError
from tools.gating.judging import Judge
from tools.gating.measures import LATENCIES
from tools.gating.settings import Gate

FORMAT = "weir-gate-1"
#: Suites as a round asks them -> the results of candidate and stable; None where there is no stable version.
Ask = Callable[[Sequence[Suite]], tuple[Side, Side | None]]


@dataclass(frozen=True)
class Contest:
    """What is compared, and how.

    Attributes:
      candidate, stable: model folders; no stable where users have none yet: regressions are then not checked.
      out: folder of the answers; the same gate goes on where it was stopped.
      training: where training prompts are, unless the gate says so itself; "" for nowhere.
    """

    gate: Gate
    candidate: Path
    stable: Path | None
    out: Path
    training: str = ""
    serving: ServingSettings | None = None
    concurrency: int = 64
    judge: Judge | None = None


@dataclass(frozen=True)
class Gated:
    """The verdict and the report."""

    passed: bool
    report: Mapping[str, Any]


def run_gate(contest: Contest, say: Callable[[str], None] = lambda _: None) -> Gated:
    """Asks both models, and more often while a check is inconclusive; what stays so after the last round has failed.

    Raises:
      GateError: too few problems are fresh.
      WeirError: a model, a suite or the judge can't be used.
    """
    retired = _retired(contest, say)

    def ask(suites: Sequence[Suite]) -> tuple[Side, Side | None]:
        candidate = _asked(contest, contest.candidate, "candidate", suites, say)
        return candidate, None if contest.stable is None else _asked(contest, contest.stable, "stable", suites, say)

    return hold_gate(contest.gate, retired, ask, judge=contest.judge, say=say)


def hold_gate(
    gate: Gate,
    retired: Mapping[str, Mapping[str, str]],
    ask: Ask,
    *,
    judge: Judge | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Gated:
    """The rounds of a gate and its report, over whatever answers.

    Args:
      retired: suite -> problem -> why it does not count.
      ask: gives the results of candidate and stable on suites that ask for more samples each round.
    """
    settings = gate.settings
    terms = Terms(settings.confidence, settings.rounds, settings.min_problems, judge, gate.calibration)
    checks: list[dict[str, Any]] = []
    outcome: Outcome = "inconclusive"
    for number in range(1, settings.rounds + 1):
        say(f"round {number} of at most {settings.rounds}")
        candidate, stable = ask([_enlarged(suite, number) for suite in gate.suites])
        checks = [held(terms, check, candidate, stable, retired) for check in settings.check]
        outcome = worst([check["outcome"] for check in checks])
        if outcome != "inconclusive" or not _can_grow(gate, checks):
            break
    report = {
        "format": FORMAT,
        "gate": settings.name,
        "gate_sha256": gate.sha256,
        "verdict": "passed" if outcome == "pass" else "failed",
        "outcome": outcome,
        "rounds": number,
        "confidence": settings.confidence,
        "models": {"candidate": candidate.identity, "stable": None if stable is None else stable.identity},
        "judge": None if judge is None else {**judge.identity(), "unread": judge.unread},
        "suites": [
            {"name": name, "hash": suite["hash"], "samples": suite["samples"], "retired": dict(retired[name])}
            for name, suite in candidate.suites.items()
        ],
        "checks": checks,
    }
    return Gated(outcome == "pass", report)


def _can_grow(gate: Gate, checks: Sequence[Mapping[str, Any]]) -> bool:
    """Whether more samples may decide what is open: greedy answers would only come again."""
    open_ = {check["suite"] for check in checks if check["outcome"] == "inconclusive"}
    return any(suite.settings.sampling.temperature for suite in gate.suites if suite.name in open_)


def _enlarged(suite: Suite, times: int) -> Suite:
    """The suite with so many times as many samples; a greedy one would only give the same answers again."""
    if not suite.settings.sampling.temperature:
        return suite
    samples = suite.settings.samples * times
    return replace(suite, settings=suite.settings.model_copy(update={"samples": samples}))


def _retired(contest: Contest, say: Callable[[str], None]) -> dict[str, dict[str, str]]:
    """Suite -> problem -> why it is not asked about any more: it was trained on, or users have sent it."""
    settings = contest.gate.settings
    found: dict[str, dict[str, str]] = {suite.name: {} for suite in contest.gate.suites}
    training = settings.training or contest.training
    sources = [("trained on", training, settings.training_column), ("served", settings.served, settings.served_column)]
    with ExitStack() as stack:
        suites = [stack.enter_context(closing(open_suite(suite))) for suite in contest.gate.suites]
        for why, source, column in sources:
            if not source:
                continue
            path = contest.gate.folder / source
            where = str(path) if path.is_file() else source
            say(f"looking for problems that were {why}, in {where}")
            shared = overlaps(suites, Training(where, column, settings.ngram), lambda number: say(f"{number:,} read"))
            say(f"read {shared[0].num_training_prompts:,} prompts that were {why}")
            for suite, overlap in zip(suites, shared, strict=True):
                found[suite.name] |= dict.fromkeys(overlap.problems, why)
        for suite in suites:
            fresh = len(suite.problems) - len(found[suite.name])
            if fresh < settings.min_problems:
                raise GateError(
                    f"suite {suite.name} has {fresh} problems that were neither trained on nor served, of "
                    f"{len(suite.problems)}; expected at least min_problems ({settings.min_problems}): add fresh ones"
                )
    return found


def _asked(contest: Contest, folder: Path, side: str, suites: Sequence[Suite], say: Callable[[str], None]) -> Side:
    say(f"asking the {side}")
    out = contest.out / side
    timed = {check.suite for check in contest.gate.settings.check if check.metric in LATENCIES}
    plan = Plan(
        suites,
        Source("folder", folder),
        out,
        serving=contest.serving,
        concurrency=contest.concurrency,
        paced=dict.fromkeys(timed, contest.gate.settings.latency_concurrency),
    )
    tree = run_plan(plan, Watch(say=say))
    measured = {(one["suite"], one["problem"], one["sample"]): one for one in read_measured(out)}
    samples: dict[str, list[Mapping[str, Any]]] = {suite["name"]: [] for suite in tree["suites"]}
    for sample in read_samples(out):
        found = measured.get((sample["suite"], sample["problem"], sample["sample"]))
        samples[sample["suite"]].append({**sample, "measured": found})
    return Side({suite["name"]: suite for suite in tree["suites"]}, samples, tree["model"])
