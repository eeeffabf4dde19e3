"""The study of the gate: how often it stops versions that are worse by known amounts, beside the power calculation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import matplotlib.figure
import numpy as np

from tools.evaluation import Suite, t_quantile
from tools.gating import CheckSettings, Gate, GateSettings, Side, hold_gate, stop_probability
from tools.shares import wilson
from tools.study.gate_pools import SUITE, GateStudy, Pool, suite_of
from tools.study.records import StudyError, finished, keep, put_tables, require_all

ROUNDS = (1, 3)
#: Regressions of the mixtures, in margins.
_MIXED = (0.0, 0.5, 1.0, 1.5, 2.0)
_GATES_A_CELL = 250
_SIMULATED = 400_000


@dataclass(frozen=True)
class Version:
    """A candidate of known quality.

    Attributes:
      rates: float64[problems], chance that an answer to each problem is right.
    """

    name: str
    rates: np.ndarray


@dataclass(frozen=True)
class GateCell:
    """So many gates for one candidate, from the first on."""

    version: str
    rounds: int
    first: int
    gates: int


@dataclass(frozen=True)
class Power:
    """Mean and spread of one problem's difference, candidate less stable, over all problems.

    Attributes:
      regression: by how much the candidate is worse.
      between: variance of the true differences.
      within: variance that one answer of each adds.
    """

    regression: float
    between: float
    within: float

    def error(self, study: GateStudy, number: int) -> float:
        """Standard error of the mean difference in round `number`, from 1 on."""
        return float(np.sqrt((self.between + self.within / (study.samples * number)) / study.asked))


def versions_of(pools: Sequence[Pool], study: GateStudy) -> list[Version]:
    """Candidates: mixtures of stable's answers and the worst copy's, worse by exact amounts, then each copy itself.

    Raises:
      StudyError: no copy is bad enough for the mixtures.
    """
    stable, *copies = pools
    rates, worst = stable.passed.mean(1), min(copies, key=lambda pool: pool.accuracy)
    fall = stable.accuracy - worst.accuracy
    if fall < (largest := max(_MIXED) * study.margin):
        raise StudyError(
            f"{worst.name} is worse by {fall:.3f}, expected at least {largest:g}: give a model that is right more "
            f"often than {stable.accuracy:.2f}, or more noise"
        )
    bad = worst.passed.mean(1)
    mixed = [(times, times * study.margin / fall) for times in _MIXED]
    found = [Version(f"{times:g} margins", (1 - part) * rates + part * bad) for times, part in mixed]
    return [*found, *(Version(pool.name, pool.passed.mean(1)) for pool in copies)]


def gate_cells(versions: Sequence[Version], gates: int) -> list[GateCell]:
    """Cells of `gates` gates for each candidate, with one round and with several."""
    return [
        GateCell(version.name, rounds, first, min(_GATES_A_CELL, gates - first))
        for rounds in ROUNDS
        for version in versions
        for first in range(0, gates, _GATES_A_CELL)
    ]


def run_cell(out: Path, study: GateStudy, pools: Sequence[Pool], cell: GateCell) -> GateCell:
    """Holds a cell's gates and keeps what came of them."""
    (version,) = (one for one in versions_of(pools, study) if one.name == cell.version)
    stable = pools[0].passed.mean(1)
    outcomes = [
        _held(study, stable, version, cell.rounds, number) for number in range(cell.first, cell.first + cell.gates)
    ]
    keep(out, cell, {"settings": asdict(study), "outcomes": outcomes})
    return cell


def _held(study: GateStudy, stable: np.ndarray, version: Version, rounds: int, number: int) -> dict[str, Any]:
    """One gate on problems and answers of its own, each drawn independently from all that there are."""
    rng = np.random.default_rng([study.seed, *version.name.encode(), rounds, number])
    problems = rng.integers(stable.size, size=study.asked)
    answers = (study.asked, study.samples * rounds)
    right = [rng.random(answers) < rates[problems, None] for rates in (version.rates, stable)]

    def ask(suites: Sequence[Suite]) -> tuple[Side, Side]:
        (suite,) = suites
        candidate, other = (_side(suite, one[:, : suite.settings.samples]) for one in right)
        return candidate, other

    gated = hold_gate(_gate(study, rounds), {SUITE: {}}, ask)
    (criterion,) = gated.report["checks"][0]["criteria"]
    told = {key: criterion[key] for key in ("value", "error", "equal_is_stopped", "stopped_with_80")}
    return {"passed": gated.passed, "rounds": gated.report["rounds"], **told}


def _gate(study: GateStudy, rounds: int) -> Gate:
    suite = suite_of(study)
    asked = Suite(suite.settings.model_copy(update={"samples": study.samples}), suite.folder, suite.origin)
    check = CheckSettings(suite=SUITE, metric="pass@1", largest_regression=study.margin)
    settings = GateSettings(
        name="study", suites=(SUITE,), check=(check,), confidence=study.confidence, rounds=rounds, min_problems=2
    )
    return Gate(settings, (asked,), suite.folder, sha256="")


def _side(suite: Suite, right: np.ndarray) -> Side:
    problems = [
        {
            "id": str(number),
            "cluster": "",
            "scores": [float(passed) for passed in row],
            "verdicts": ["pass" if passed else "fail" for passed in row],
        }
        for number, row in enumerate(right.tolist())
    ]
    fields = {"hash": "", "samples": suite.settings.samples, "problems": problems}
    return Side({SUITE: fields}, {SUITE: []}, {"kind": "study"})


def power_of(pools: Sequence[Pool], version: Version) -> Power:
    """What the power calculation needs to know of a candidate."""
    stable = pools[0].passed.mean(1)
    differences = version.rates - stable
    within = version.rates * (1 - version.rates) + stable * (1 - stable)
    return Power(round(-float(differences.mean()), 9) + 0.0, float(differences.var()), float(within.mean()))


def stopped_share(power: Power, study: GateStudy, rounds: int) -> float:
    """The chance that a gate stops the candidate, where its mean differences are normal.

    One round has a formula, the one of the gate's reports. Several share problems and answers, so that their means are
    drawn together, and decided by the bounds of the gate.
    """
    if rounds == 1:
        error = power.error(study, 1)
        return stop_probability(power.regression, study.margin, error, confidence=study.confidence)
    rng = np.random.default_rng(study.seed)
    spread = np.sqrt(power.between / study.asked)
    means = rng.normal(-power.regression, spread, _SIMULATED)
    added = np.zeros(_SIMULATED)
    is_open, passed = np.ones(_SIMULATED, bool), 0
    quantile = t_quantile(1 - (1 - study.confidence) / rounds, study.asked - 1)
    for number in range(1, rounds + 1):
        added += rng.normal(0.0, np.sqrt(power.within / study.samples / study.asked), _SIMULATED)
        found, error = means + added / number, power.error(study, number)
        reach = quantile * error
        passes = is_open & (found - reach >= -study.margin)
        passed += int(passes.sum())
        is_open &= ~passes & (found + reach >= -study.margin)
    return 1 - passed / _SIMULATED


def write_gate_report(
    out: Path, pools: Sequence[Pool], wanted: Sequence[GateCell], study: GateStudy, folder: Path
) -> Path:
    """Writes gate.svg, and the tables into gate.md between its two markers; the text around them stays."""
    records = require_all(list(wanted), finished(out, study, GateCell))
    outcomes: dict[tuple[int, str], list[dict[str, Any]]] = {}
    for cell, record in records.items():
        outcomes.setdefault((cell.rounds, cell.version), []).extend(record["outcomes"])
    measured = [_measured(pools, version, study, outcomes) for version in versions_of(pools, study)]
    rows = [row for version in measured for row in version]
    page = put_tables(folder / "gate.md", "Does the gate stop what is worse?", _tables(pools, rows, study))
    _plot(rows, study, folder / "gate.svg")
    return page


@dataclass(frozen=True)
class Row:
    """What came of all gates of a candidate.

    Attributes:
      stopped: of how many gates.
      calculated: the share that the power calculation expects.
      told: means of what the gates' own reports expect: equal_is_stopped and stopped_with_80.
    """

    version: str
    rounds: int
    regression: float
    stopped: int
    gates: int
    calculated: float
    mean_rounds: float
    told: tuple[float, float]

    @property
    def interval(self) -> tuple[float, float]:
        return wilson(self.stopped, self.gates)

    @property
    def agrees(self) -> bool:
        low, high = self.interval
        return low <= self.calculated <= high


def _measured(
    pools: Sequence[Pool], version: Version, study: GateStudy, outcomes: dict[tuple[int, str], list[dict[str, Any]]]
) -> list[Row]:
    power = power_of(pools, version)
    rows = []
    for rounds in ROUNDS:
        if found := outcomes.get((rounds, version.name), []):
            stopped = sum(not one["passed"] for one in found)
            calculated = stopped_share(power, study, rounds)
            used = float(np.mean([one["rounds"] for one in found]))
            told = tuple(float(np.mean([one[key] for one in found])) for key in ("equal_is_stopped", "stopped_with_80"))
            row = Row(version.name, rounds, power.regression, stopped, len(found), calculated, used, (told[0], told[1]))
            rows.append(row)
    return rows


def _tables(pools: Sequence[Pool], rows: Sequence[Row], study: GateStudy) -> str:
    lines = ["| model | right answers | worse than stable by |", "|---|---|---|"]
    stable = pools[0].accuracy
    lines += [f"| {pool.name} | {pool.accuracy:.1%} | {stable - pool.accuracy:.3f} |" for pool in pools]
    for rounds in ROUNDS:
        chosen = sorted((row for row in rows if row.rounds == rounds), key=lambda row: row.regression)
        name = "one round" if rounds == 1 else f"up to {rounds} rounds"
        lines += ["", f"| candidate, {name} | worse by | gates | stopped | calculated | inside | rounds used |"]
        lines.append("|---|---|---|---|---|---|---|")
        for row in chosen:
            low, high = row.interval
            share = f"{row.stopped / row.gates:.1%} ({low:.1%} to {high:.1%})"
            cells = [row.version, f"{row.regression:.3f}", str(row.gates), share, f"{row.calculated:.1%}"]
            lines.append(f"| {' | '.join(cells)} | {'yes' if row.agrees else 'no'} | {row.mean_rounds:.2f} |")
    equal = next(row for row in rows if row.rounds == 1 and row.version == "0 margins")
    lines += [
        "",
        f"Inside: {sum(row.agrees for row in rows)} of {len(rows)} calculated shares lie in the measured interval; "
        "of 95% intervals one in twenty is expected to miss.",
        f"Reports of gates on equal versions expect {equal.told[0]:.1%} false stops on average, and that a regression "
        f"of {equal.told[1]:.3f} is stopped in 80% of cases. The margin is {study.margin:g}.",
    ]
    return "\n".join(lines)


def _plot(rows: Sequence[Row], study: GateStudy, path: Path) -> None:
    figure = matplotlib.figure.Figure(figsize=(9, 4.2), layout="constrained")
    for axes, rounds in zip(figure.subplots(1, len(ROUNDS), sharey=True), ROUNDS, strict=True):
        chosen = sorted((row for row in rows if row.rounds == rounds), key=lambda row: row.regression)
        worse = [row.regression for row in chosen]
        shares = np.array([row.stopped / row.gates for row in chosen])
        bounds = np.array([row.interval for row in chosen]).T
        axes.errorbar(worse, shares, yerr=[shares - bounds[0], bounds[1] - shares], fmt=".", label="measured, 95%")
        axes.plot(worse, [row.calculated for row in chosen], color="grey", linewidth=1, label="calculated")
        axes.axvline(study.margin, color="grey", linestyle="--", linewidth=1)
        axes.set(xlabel="worse by", title="one round" if rounds == 1 else f"up to {rounds} rounds")
    figure.axes[0].set(ylabel="share of gates that stop it", ylim=(0, 1.02))
    figure.axes[0].legend()
    figure.savefig(path)
