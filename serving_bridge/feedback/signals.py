"""Raters whose feedback should not be learned from: as numbers, and as a decision that people can look at and undo.

| signal | number | why |
|---|---|---|
| flooding | feedback over the median of the tenant's raters | one voice must not drown the others |
| collusion | probability that two raters agree so often | accounts of one hand, or of one script |
| flip-flop | share of verdicts that the rater took back itself | says nothing, whatever it says |

Honest raters agree, too, since some answers are good. So a pair is held against the agreement of all other pairs of its
tenant, and at least against that of independent raters with each one's own share of likes (Cohen, "A Coefficient of
Agreement for Nominal Scales", 1960). The probability is the binomial's tail, times the number of pairs. Pairs that
differ in more than 3% of their common answers are left alone.

A ring would hide among its own pairs. So a rater who agrees as nearly with fewer others than it differs from is held
against the latter. Who has the majority on its side is held against all: careful raters agree on nearly everything.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from serving_bridge.database import Database, Session
from serving_bridge.settings import FeedbackSettings

#: Answers that two raters must have judged both, and verdicts that a rater must have given, before numbers mean much.
_FEWEST_COMMON, _FEWEST_VERDICTS, _FEWEST_RATERS = 10, 10, 3
#: Agreements among comparisons of raters in general, before any are known.
_PRIOR = (16.0, 20.0)
#: Careful raters agree more than others; those of one hand agree on nearly everything.
_SAME_SHARE = 0.97
#: Newest verdicts that are looked at.
_LOOKED_AT = 50_000
#: Raters of one answer that are compared in pairs; more of them say the same.
_PAIRS_OF = 50


@dataclass(frozen=True)
class Verdict:
    """One explicit verdict with a number; likes are from 0.5 on."""

    rater: str
    answer_id: str
    likes: bool


@dataclass(frozen=True)
class RaterSignals:
    """What is known of one rater.

    Attributes:
      flood: verdicts over the median of the tenant's raters.
      collusion_p: smallest probability that it agrees so often with another rater by chance; 1 without a common answer.
      with_rater: that rater.
      flip_share: share of its verdicts that it took back.
    """

    tenant: str
    rater: str
    verdicts: int
    flood: float
    collusion_p: float
    with_rater: str
    flip_share: float

    def reason(self, settings: FeedbackSettings) -> str:
        """Why the rater is to be set aside; "" if it is not."""
        if self.flood > settings.flood_factor:
            return f"flooding: {self.flood:.1f} times the median"
        if self.collusion_p < settings.collusion_p:
            return f"collusion: agrees with {self.with_rater[:8]} so often with probability {self.collusion_p:.1g}"
        if self.verdicts >= _FEWEST_VERDICTS and self.flip_share > settings.flip_share:
            return f"flip-flop: takes back {self.flip_share:.0%} of its verdicts"
        return ""


def signals(tenant: str, verdicts: Sequence[Verdict]) -> list[RaterSignals]:
    """The signals of each rater of a tenant; verdicts are in the order in which they came."""
    by_rater: dict[str, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    for verdict in verdicts:
        by_rater[verdict.rater][verdict.answer_id].append(verdict.likes)
    numbers = {rater: sum(map(len, answers.values())) for rater, answers in by_rater.items()}
    median = sorted(numbers.values())[len(numbers) // 2] if numbers else 1
    chance = _chances({rater: {a: given[-1] for a, given in answers.items()} for rater, answers in by_rater.items()})
    found = []
    for rater, answers in sorted(by_rater.items()):
        flips = sum(a != b for given in answers.values() for a, b in itertools.pairwise(given))
        with_rater, p = chance.get(rater, ("", 1.0))
        flood = numbers[rater] / median if len(numbers) >= _FEWEST_RATERS else 1.0
        found.append(RaterSignals(tenant, rater, numbers[rater], flood, p, with_rater, flips / numbers[rater]))
    return found


def _chances(latest: Mapping[str, Mapping[str, bool]]) -> dict[str, tuple[str, float]]:
    """(other rater, probability) of each rater's least likely agreement, corrected for the number of pairs."""
    raters_of: dict[str, list[str]] = defaultdict(list)
    for rater, answers in latest.items():
        for answer_id in answers:
            raters_of[answer_id].append(rater)
    common: dict[tuple[str, str], list[bool]] = defaultdict(list)
    for answer_id, raters in raters_of.items():
        for first, second in itertools.combinations(sorted(raters)[:_PAIRS_OF], 2):
            common[first, second].append(latest[first][answer_id] == latest[second][answer_id])
    agreements, compared = sum(map(sum, common.values())), sum(map(len, common.values()))
    shares = {rater: (sum(a.values()) + 1) / (len(a) + 2) for rater, a in latest.items()}
    outside = _outside_of_rings(common)
    found: dict[str, tuple[str, float]] = {}
    for (first, second), agreed in common.items():
        if not _is_suspect(agreed):
            continue
        by_chance = shares[first] * shares[second] + (1 - shares[first]) * (1 - shares[second])
        if first in outside and second in outside:
            agree, of = (a + b for a, b in zip(outside[first], outside[second], strict=True))
        else:
            agree, of = agreements - sum(agreed), compared - len(agreed)
        of_others = (agree + _PRIOR[0]) / (of + _PRIOR[1])
        p = min(1.0, binomial_tail(sum(agreed), len(agreed), max(by_chance, of_others)) * len(common))
        for one, other in ((first, second), (second, first)):
            if p < found.get(one, ("", 2.0))[1]:
                found[one] = (other, p)
    return found


def _is_suspect(agreed: Sequence[bool]) -> bool:
    return len(agreed) >= _FEWEST_COMMON and sum(agreed) >= _SAME_SHARE * len(agreed)


def _outside_of_rings(common: Mapping[tuple[str, str], Sequence[bool]]) -> dict[str, tuple[int, int]]:
    """(agreements, common answers) of raters with those from whom they differ, where these are more than the others."""
    alike: dict[str, int] = defaultdict(int)
    differing: dict[str, int] = defaultdict(int)
    sums: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for pair, agreed in common.items():
        if len(agreed) < _FEWEST_COMMON:
            continue
        for rater in pair:
            if _is_suspect(agreed):
                alike[rater] += 1
            else:
                differing[rater] += 1
                sums[rater][0] += sum(agreed)
                sums[rater][1] += len(agreed)
    return {rater: (found[0], found[1]) for rater, found in sums.items() if alike[rater] < differing[rater]}


def binomial_tail(least: int, trials: int, p: float) -> float:
    """P(X >= least) of X ~ Binomial(trials, p)."""
    return min(
        1.0,
        sum(
            math.exp(
                math.lgamma(trials + 1)
                - math.lgamma(k + 1)
                - math.lgamma(trials - k + 1)
                + k * math.log(p)
                + (trials - k) * math.log1p(-p)
            )
            for k in range(least, trials + 1)
        ),
    )


class Raters:
    """The raters of a database: their signals, and who is set aside."""

    def __init__(self, database: Database, settings: FeedbackSettings) -> None:
        self._db, self._settings = database, settings

    def signals(self) -> list[RaterSignals]:
        """Of all tenants' raters, by their newest verdicts."""
        rows = self._db.read(
            lambda session: session.execute(
                "SELECT tenant, rater, answer_id, value FROM feedback WHERE outcome = 'joined' AND rater <> '' "
                f"AND kind IN ('rating', 'thumbs') ORDER BY sequence DESC LIMIT {_LOOKED_AT}"
            )
        )
        by_tenant: dict[str, list[Verdict]] = defaultdict(list)
        for tenant, rater, answer_id, value in reversed(rows):
            by_tenant[tenant].append(Verdict(rater, answer_id, value >= 0.5))
        return [found for tenant, verdicts in sorted(by_tenant.items()) for found in signals(tenant, verdicts)]

    def set_aside(self, now: float) -> list[tuple[RaterSignals, str]]:
        """Sets raters aside whose signals say so; their feedback is not learned from. Returns them with the reasons."""
        found = [(one, reason) for one in self.signals() if (reason := one.reason(self._settings))]

        def work(session: Session) -> None:
            session.executemany(
                "INSERT INTO quarantined_raters VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
                [(one.tenant, one.rater, reason, now) for one, reason in found],
            )

        if found:
            self._db.write(work)
        return found

    def aside(self) -> list[tuple[str, str, str]]:
        """(tenant, rater, reason) of those who are set aside."""
        return [
            (tenant, rater, reason)
            for tenant, rater, reason in self._db.read(
                lambda session: session.execute(
                    "SELECT tenant, rater, reason FROM quarantined_raters ORDER BY tenant, rater"
                )
            )
        ]

    def take_back(self, tenant: str, rater: str) -> bool:
        """Lets a rater's feedback count again; whether it was set aside."""
        return bool(
            self._db.write(
                lambda session: session.execute(
                    "DELETE FROM quarantined_raters WHERE tenant = ? AND rater = ? RETURNING rater", (tenant, rater)
                )
            )
        )
