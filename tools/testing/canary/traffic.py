"""Simulated traffic of one deployment: what a controller's observations would be, drawn for whole looks."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from learner_jax.runtime import WeirError
from serving_bridge.canary import Arm, Cell, MetricPolicy, Seen, bar_of, exceeds
from serving_bridge.registry import Cohort, TrafficSplit
from tools.testing.canary.kinds import COVERAGE, LOGNORMAL, NORMAL, OF_GATEWAY, RATES, Kind

#: Conversations a minute at noon and at night; the mean is about 420.
_BUSY, _QUIET = 600.0, 240.0
_DAY_S, _HOUR_S = 86_400.0, 3600.0
#: tenant -> share of the conversations
TENANTS = {"a": 0.5, "b": 0.25, "c": 0.15, "d": 0.1}
_ANSWERS_EACH = 1.5


class ControllerKilled(WeirError):
    """The controller of the simulation dies here."""


class Traffic:
    """Implements `serving_bridge.canary.Source`.

    Args:
      split: the split as gateways would read it, and the only tenants that it is for; None for all.
      clock: seconds of virtual time.
      deaths: chance that the controller dies in a look.
    """

    def __init__(
        self,
        kind: Kind,
        rng: np.random.Generator,
        split: Callable[[], tuple[TrafficSplit, Cohort | None]],
        clock: Callable[[], float],
        *,
        deaths: float = 0.0,
    ) -> None:
        self._kind, self._rng, self._split, self._clock, self._deaths = kind, rng, split, clock, deaths
        self._began_s = self._upto_s = clock()
        self._number = 0
        self._bars: Mapping[str, float] = {}
        self._new_bars: dict[str, float] = {}

    def last(self, namespace: str) -> int:
        return self._number

    def seen(
        self,
        namespace: str,
        after: int,
        *,
        canary: int,
        stable: int,
        shadow: bool,
        metrics: Sequence[MetricPolicy],
        cohort: Cohort | None,
        bars: Mapping[str, float],
    ) -> Seen:
        if self._rng.random() < self._deaths:
            raise ControllerKilled("killed")
        now_s = self._clock()
        split, dealt = self._split()
        arrived = self._rng.multinomial(self._arrivals(now_s), list(TENANTS.values()))
        self._upto_s = now_s
        self._number += 1
        is_off = split.canary_share >= self._kind.from_share
        hidden = self._kind.hides if is_off else 0.0
        arms = self._dealt(arrived, split, dealt, shadow=shadow, hidden=hidden)
        is_compared = np.array([cohort is None or cohort.has(tenant) for tenant in TENANTS])
        counts: dict[Arm, int] = {arm: int(numbers[is_compared].sum()) for arm, numbers in arms.items()}
        cells: list[Cell] = []
        covered: dict[str, dict[Arm, int]] = {}
        self._bars, self._new_bars = bars, {}
        for arm, numbers in arms.items():
            of_tenants = [int(n) for n in numbers * is_compared]
            for metric in metrics:
                drawn = self._cells(metric, arm, of_tenants, now_s, is_off=is_off and arm == "canary", shadow=shadow)
                cells += drawn
                of = covered.setdefault(metric.name, {"canary": 0, "stable": 0})
                of[arm] = round(_ANSWERS_EACH * sum(cell.n for cell in drawn if cell.tenant == ""))
        answers = tuple(round(_ANSWERS_EACH * counts[arm]) for arm in ("canary", "stable"))
        return Seen(
            until=self._number,
            answers=(answers[0], answers[1]),
            conversations=(counts["canary"], counts["stable"]),
            covered={name: (of["canary"], of["stable"]) for name, of in covered.items()},
            cells=cells,
            bars=self._new_bars,
        )

    def _dealt(
        self, arrived: np.ndarray, split: TrafficSplit, cohort: Cohort | None, *, shadow: bool, hidden: float
    ) -> dict[Arm, np.ndarray]:
        """Conversations of each tenant in each arm, of which some of the canary's are hidden."""
        shares = [split.canary_share if cohort is None else split.within * cohort.has(tenant) for tenant in TENANTS]
        canary = self._rng.binomial(arrived, shares)
        stable = arrived - canary
        if shadow:
            canary = self._rng.binomial(stable, split.shadow_share)
        return {"canary": self._rng.binomial(canary, 1 - hidden) if hidden else canary, "stable": stable}

    def _arrivals(self, now_s: float) -> int:
        noon = (1 - math.cos(2 * math.pi * now_s / _DAY_S)) / 2
        rate = _QUIET + (_BUSY - _QUIET) * noon
        return int(self._rng.poisson(rate * (now_s - self._upto_s) / 60))

    def _cells(
        self, metric: MetricPolicy, arm: Arm, of_tenants: Sequence[int], now_s: float, *, is_off: bool, shadow: bool
    ) -> list[Cell]:
        if metric.name in self._kind.missing and arm == "canary":
            return []
        if shadow and arm == "canary" and not metric.measure.in_shadow:
            return []
        sums: list[tuple[str, int, float, float]] = []
        of_tail, name = list[np.ndarray](), metric.measure.tail_of or metric.name
        for tenant, arrived in zip(TENANTS, of_tenants, strict=True):
            count = int(self._rng.binomial(arrived, COVERAGE.get(metric.name, 1.0)))
            differs = is_off and self._kind.tenant in ("", tenant)
            if self._kind.lies and name in OF_GATEWAY:
                differs = False
            drawn = self._drawn(name, count, now_s, differs=differs)
            of_tail.append(drawn)
            values = self._scaled(metric, drawn, arm)
            count = values.size
            sums.append((tenant, count, float(values.sum()), float((values * values).sum())))
        if metric.measure.tail_of and arm == "stable":
            bar = bar_of(np.concatenate(of_tail), metric.measure.quantile)
            self._new_bars |= {} if bar is None else {metric.name: bar}
        number, total, squares = np.array([one[1:] for one in sums]).sum(axis=0).tolist()
        cells = [Cell(metric.name, arm, "", number, total, squares)]
        if metric.per_tenant:
            cells += [Cell(metric.name, arm, tenant, n, total, squares) for tenant, n, total, squares in sums]
        return [cell for cell in cells if cell.n]

    def _drawn(self, name: str, count: int, now_s: float, *, differs: bool) -> np.ndarray:
        kind = self._kind
        added = kind.adds.get(name, 0.0) if differs else 0.0
        if differs:
            added += kind.per_hour.get(name, 0.0) * (now_s - self._began_s) / _HOUR_S
        if name in RATES:
            return (self._rng.random(count) < min(RATES[name] + added, 1.0)).astype(np.float64)
        if name in LOGNORMAL:
            median, sigma = LOGNORMAL[name]
            busy = 1 + 0.3 * (1 - math.cos(2 * math.pi * now_s / _DAY_S)) / 2 if name == "ttft_s" else 1.0
            factor: float | np.ndarray = kind.times.get(name, 1.0) if differs else 1.0
            if differs and name in kind.tails:
                share, slower = kind.tails[name]
                factor = np.where(self._rng.random(count) < share, slower, 1.0)
            return median * busy * factor * np.exp(sigma * self._rng.standard_normal(count))
        mean, deviation = NORMAL[name]
        return mean + added + deviation * self._rng.standard_normal(count)

    def _scaled(self, metric: MetricPolicy, values: np.ndarray, arm: Arm) -> np.ndarray:
        measure = metric.measure
        if measure.tail_of:
            bar = self._bars.get(metric.name)
            found = [exceeds(value, bar, metric.margin, arm) for value in values.tolist()] if bar is not None else []
            return np.array(found, dtype=np.float64)
        clipped = np.clip(values, measure.low, measure.high)
        if measure.is_log:
            return np.log(clipped / measure.low) / math.log(measure.high / measure.low)
        return (clipped - measure.low) / (measure.high - measure.low)
