"""Kinds of candidates: what of their answers differs from those of stable, and when."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

#: Of stable's answers: rates; (median, sigma) of lognormal values; (mean, deviation) of others.
RATES = {"error": 0.004, "guard": 0.003, "refusal": 0.03, "thumbs_down": 0.05}
LOGNORMAL = {"ttft_s": (0.25, 0.45), "tokens_per_s": (40.0, 0.25), "length": (120.0, 0.6)}
NORMAL = {"distinct": (0.78, 0.1), "score.judge": (0.62, 0.2), "score.reward": (0.6, 0.25)}
#: share of answers that have a value; 1 where it is not named
COVERAGE = {"score.judge": 0.3, "score.reward": 1.0, "thumbs_down": 0.2}
#: what a gateway itself measures; others see the rest
OF_GATEWAY = ("error", "guard", "refusal", "ttft_s", "tokens_per_s", "length", "distinct")


@dataclass(frozen=True)
class Kind:
    """How a candidate's answers differ.

    Attributes:
      adds: metric -> what is added to its rate or mean.
      times: metric -> factor of its median.
      tails: metric -> (share of its values, factor of these).
      per_hour: metric -> what is added to its rate for each hour since the rollout began.
      tenant: the only tenant that this is for; "" for all.
      from_share: the share of traffic from which on it is so.
      lies: whether a gateway then says of the candidate what it says of stable.
      hides: share of the candidate's observations that never come.
      missing: metrics that the candidate's answers do not have.
      by_tenants: whether the steps are whole tenants, one after the other.
    """

    name: str
    told: str
    adds: Mapping[str, float] = field(default_factory=dict)
    times: Mapping[str, float] = field(default_factory=dict)
    tails: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    per_hour: Mapping[str, float] = field(default_factory=dict)
    tenant: str = ""
    from_share: float = 0.0
    lies: bool = False
    hides: float = 0.0
    missing: tuple[str, ...] = ()
    by_tenants: bool = False


GOOD: tuple[Kind, ...] = (
    Kind("same", "as stable in everything"),
    Kind(
        "better",
        "higher scores, fewer errors and refusals",
        adds={"score.judge": 0.04, "score.reward": 0.05, "error": -0.002, "refusal": -0.01, "thumbs_down": -0.01},
    ),
    Kind(
        "within",
        "worse by a fifth of each margin",
        adds={"error": 0.002, "refusal": 0.004, "score.judge": -0.006, "distinct": -0.006},
        times={"ttft_s": 1.02},
    ),
    Kind("by_tenants", "as stable in everything; whole tenants one after the other", by_tenants=True),
)
BAD: tuple[Kind, ...] = (
    Kind("errors", "errors 0.4% to 3%", adds={"error": 0.026}),
    Kind("slow", "20% slower: first text and tokens", times={"ttft_s": 1.2, "tokens_per_s": 1 / 1.2}),
    Kind("tail", "6% of the first texts take four times as long", tails={"ttft_s": (0.06, 4.0)}),
    Kind("toxic", "guards speak up 0.3% to 2.5%", adds={"guard": 0.022}),
    Kind("refusals", "refusals 3% to 8%", adds={"refusal": 0.05}),
    Kind(
        "reward_hacked",
        "reward up by 0.1, answers longer by half and more alike",
        adds={"score.reward": 0.1, "score.judge": -0.08, "distinct": -0.05},
        times={"length": 1.5},
    ),
    Kind("mode_collapse", "distinct-2 down by 0.2", adds={"distinct": -0.2}, times={"length": 0.7}),
    Kind("slow_drift", "refusals rise by 4 points an hour", per_hour={"refusal": 0.04}),
    Kind("one_tenant", "errors of one tenant of four, 10% of the traffic, 0.4% to 8%", {"error": 0.076}, tenant="d"),
    Kind(
        "first_tenant",
        "errors of one tenant 0.4% to 8%; whole tenants, this one first",
        {"error": 0.076},
        tenant="d",
        by_tenants=True,
    ),
    Kind(
        "last_tenant",
        "errors of one tenant 0.4% to 3.4%; whole tenants, this one last",
        {"error": 0.03},
        tenant="a",
        by_tenants=True,
    ),
    Kind("missing", "no verdicts of guards from the candidate", missing=("guard",)),
    Kind("turns", "errors 0.4% to 3% from 50% of the traffic on", adds={"error": 0.026}, from_share=0.5),
    Kind(
        "lies",
        "refuses more, and from 50% on its gateway reports stable's numbers; only judge and users tell",
        adds={"refusal": 0.08, "score.judge": -0.1, "thumbs_down": 0.1},
        from_share=0.5,
        lies=True,
    ),
    Kind("hides", "from 50% on 4 of 10 of its observations never come", from_share=0.5, hides=0.4),
)
