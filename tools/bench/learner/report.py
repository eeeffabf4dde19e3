"""What the learner benchmark concludes: agreement of the sides, ranges over rounds, aims, and the tables."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from rich.table import Table

from tools.bench import BenchmarkError
from tools.bench.learner.cases import Expected
from tools.bench.learner.sides import WEIR, Result

#: Of the loss, absolute. It is a small difference of large terms: log-probs near 8 carry an fp32 rounding of 5e-7, and
#: each side adds the noise to them and subtracts them again in an order of its own. That is 1e-8 to 1e-7 in the mean
#: over thousands of tokens; a wrong clip, mask or mean shows from 1e-5 on.
LOSS_TOLERANCE = 2e-6
#: Of KL and gradient norm, relative. Gradient norms differ by 2e-5 on full rows and by 1e-4 on ragged ones, where
#: padding at the left gives tokens other positions.
TOLERANCE = 1e-3

LABELS = {WEIR: "Weir", "tunix": "Tunix", "trl": "TRL"}


def check(results: Mapping[str, Result], expected: Expected, case: str) -> None:
    """Compares loss and KL of the first step with what they must be, and gradient norms with the first side's.

    Weir reports the KL that is in the loss, a mean over answers; the peers report the mean over all tokens.

    Raises:
      BenchmarkError: a figure differs.
    """
    reference_name = next(iter(results))
    reference = results[reference_name]
    for name, result in results.items():
        kl = expected.kl_of_answers if name == WEIR else expected.kl_of_tokens
        comparisons = (
            ("loss", result.loss, expected.loss, "the formula", LOSS_TOLERANCE),
            ("KL", result.kl, kl, "the formula", TOLERANCE * abs(kl)),
            ("gradient norm", result.grad_norm, reference.grad_norm, reference_name, TOLERANCE * reference.grad_norm),
        )
        for figure, got, wanted, source, allowed in comparisons:
            if not abs(got - wanted) <= allowed:
                raise BenchmarkError(
                    f"{case}: {name} gives {figure} {got:.8g}, {source} {wanted:.8g}; allowed is a difference of "
                    f"{allowed:.1e}; nothing was timed"
                )


@dataclass(frozen=True)
class Range:
    """Over rounds; of few values the extremes say more than percentiles."""

    median: float
    minimum: float
    maximum: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Range:
        values = list(values)
        return cls(statistics.median(values), min(values), max(values))

    def show(self, digits: int = 0) -> str:
        return f"{self.median:.{digits}f} ({self.minimum:.{digits}f}-{self.maximum:.{digits}f})"


@dataclass(frozen=True)
class Row:
    """One side in one case, over all rounds; `peer_over_weir` is None where Weir was not measured.

    Attributes:
      tokens_per_s: real tokens, padding not counted, by wall time.
      peer_over_weir: quotient of the CPU times of one round.
    """

    case: str
    side: str
    cpu_ms: Range
    wall_ms: Range
    tokens_per_s: Range
    maxrss_mb: Range
    first_step_s: Range
    peer_over_weir: Range | None


def rows(case: str, results: Mapping[str, Sequence[Result]], num_tokens: int) -> list[Row]:
    """One row a side; `results` has the same rounds for all."""
    weir = results.get(WEIR)
    return [
        Row(
            case=case,
            side=side,
            cpu_ms=Range.of(r.step_cpu_ms for r in of_side),
            wall_ms=Range.of(r.step_ms for r in of_side),
            tokens_per_s=Range.of(1e3 * num_tokens / r.step_ms for r in of_side),
            maxrss_mb=Range.of(r.maxrss_mb for r in of_side),
            first_step_s=Range.of(r.first_step_s for r in of_side),
            peer_over_weir=None if weir is None else _quotient(of_side, weir),
        )
        for side, of_side in results.items()
    ]


def _quotient(theirs: Sequence[Result], ours: Sequence[Result]) -> Range:
    return Range.of(a.step_cpu_ms / b.step_cpu_ms for a, b in zip(theirs, ours, strict=True))


def table(title: str, of_case: Sequence[Row]) -> Table:
    shown = Table(title=title, title_justify="left")
    shown.add_column("side")
    for heading in (
        "CPU ms a step",
        "wall ms a step",
        "real tokens/s",
        "peak RSS, MiB",
        "first step, s",
        "x Weir's CPU",
    ):
        shown.add_column(heading, justify="right")
    for row in of_case:
        ratio = "" if row.peer_over_weir is None else row.peer_over_weir.show(2)
        figures = (row.cpu_ms, row.wall_ms, row.tokens_per_s, row.maxrss_mb)
        shown.add_row(row.side, *(figure.show() for figure in figures), row.first_step_s.show(1), ratio)
    return shown


@dataclass(frozen=True)
class Aim:
    """What Weir should reach against one side: at most a share of its CPU time, or at least so many times faster."""

    case: str
    side: str
    share: float | None = None
    times: float | None = None


AIMS = (
    Aim("uniform", "tunix", share=0.80),
    Aim("uniform", "trl", share=0.60),
    Aim("lognormal", "tunix", times=2.5),
    Aim("lognormal", "trl", times=2.5),
    Aim("lognormal", "tunix, best", times=1.15),
    Aim("lognormal", "trl, best", times=1.15),
    Aim("prefix", "tunix", times=3.0),
    Aim("prefix", "trl", times=3.0),
)
#: Share of the naive head's memory.
HEAD_AIM = 1 / 8


@dataclass(frozen=True)
class Verdict:
    """An aim, what was measured, and whether that reaches it, in one line."""

    case: str
    against: str
    measured: float
    aim: float
    met: bool
    line: str


def verdicts(measured: Sequence[Row]) -> list[Verdict]:
    """One for each aim whose side and case were measured beside Weir; by the median over rounds."""
    quotients = {(row.case, row.side): row.peer_over_weir for row in measured}
    found = []
    for aim in AIMS:
        quotient = quotients.get((aim.case, aim.side))
        if quotient is None:
            continue
        program, _, best = aim.side.partition(", ")
        against = LABELS[program] + (" at its best flags" if best else "")
        if aim.share is not None:
            share = 1 / quotient.median
            text = f"{share:.2f}x {against}'s CPU time"
            found.append(verdict(aim.case, against, text, share, aim.share, at_most=True))
        else:
            assert aim.times is not None
            text = f"{quotient.median:.2f}x as fast as {against} by CPU time"
            found.append(verdict(aim.case, against, text, quotient.median, aim.times, at_most=False))
    return found


def verdict(case: str, against: str, text: str, measured: float, aim: float, *, at_most: bool) -> Verdict:
    met = measured <= aim if at_most else measured >= aim
    sign = "<=" if at_most else ">="
    line = f"{case}: {text} (aim {sign} {aim:.3g}): {'met' if met else 'NOT met'}"
    return Verdict(case, against, measured, aim, met, line)
