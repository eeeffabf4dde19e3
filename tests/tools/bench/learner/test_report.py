"""What the learner benchmark concludes: agreement, quotients and aims."""

from __future__ import annotations

import dataclasses

import pytest

from tests.support.bench_batches import GOOD, first_step
from tools.bench import BenchmarkError
from tools.bench.learner.cases import expected, lognormal
from tools.bench.learner.report import Range, Row, check, rows, verdict, verdicts
from tools.bench.learner.sides import Result


def test_sides_that_agree_pass() -> None:
    """Without which the refusals below would prove nothing."""
    batch = lognormal(37, seed=0)
    firsts = {name: first_step(batch, name) for name in ("weir", "tunix", "trl")}
    assert check(firsts, expected(batch), "lognormal") is None  # type: ignore[func-returns-value]


@pytest.mark.parametrize(
    ("name", "figure", "factor", "message"),
    [
        ("trl", "loss", 1.002, "lognormal: trl gives loss 0.0020"),
        ("weir", "loss", 1.002, "lognormal: weir gives loss 0.0020"),
        ("tunix", "kl", 1.0011, "lognormal: tunix gives KL 0.0049"),
        ("tunix", "grad_norm", 1.0011, r"lognormal: tunix gives gradient norm 1\.0011, weir 1; allowed is"),
        ("trl", "grad_norm", float("nan"), "trl gives gradient norm nan"),
    ],
)
def test_disagreement_is_an_error(name: str, figure: str, factor: float, message: str) -> None:
    batch = lognormal(37, seed=0)
    results = {side: first_step(batch, side) for side in ("weir", "tunix", "trl")}
    wrong = factor * getattr(results[name], figure)
    results[name] = dataclasses.replace(results[name], **{figure: wrong})
    with pytest.raises(BenchmarkError, match=message):
        check(results, expected(batch), "lognormal")


def test_quotients_are_taken_within_a_round() -> None:
    def rounds(*cpu: float) -> list[Result]:
        return [dataclasses.replace(GOOD, step_cpu_ms=ms) for ms in cpu]

    ours, theirs = rows("uniform", {"weir": rounds(100, 300, 100), "trl": rounds(200, 300, 400)}, num_tokens=500)
    assert theirs.peer_over_weir == Range(median=2.0, minimum=1.0, maximum=4.0)  # of the medians it would be 3
    assert (theirs.cpu_ms.show(), ours.peer_over_weir) == ("300 (200-400)", Range(1.0, 1.0, 1.0))
    assert theirs.tokens_per_s.median == pytest.approx(2000)
    alone = rows("uniform", {"trl": rounds(1)}, num_tokens=1)
    assert alone[0].peer_over_weir is None


@pytest.mark.parametrize(
    ("case", "side", "quotient", "met"),
    [
        ("uniform", "tunix", 1 / 0.79, True),
        ("uniform", "tunix", 1 / 0.81, False),
        ("uniform", "trl", 1 / 0.61, False),
        ("lognormal", "trl", 2.51, True),
        ("lognormal", "tunix, best", 1.14, False),
        ("prefix", "tunix", 2.9, False),
        ("prefix", "trl", 3.1, True),
    ],
)
def test_aims_are_met_on_their_right_side(case: str, side: str, quotient: float, met: bool) -> None:
    figure = Range(1.0, 1.0, 1.0)
    row = Row(case, side, figure, figure, figure, figure, figure, Range(quotient, 0.0, 99.0))
    (found,) = verdicts([row])
    assert found.met == met
    assert found.line.endswith(": met") == met


def test_verdict_says_measured_aim_and_outcome() -> None:
    assert verdict("head", "x", "0.2x", 0.2, 0.125, at_most=True).line == "head: 0.2x (aim <= 0.125): NOT met"
