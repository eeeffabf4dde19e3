"""Observations of answers: what gateways, scorers and users say of each, as numbers, and what a look makes of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import msgspec

from learner_jax.contracts import quoted
from learner_jax.runtime import PLAIN_NAME
from serving_bridge.canary.errors import CanaryError
from serving_bridge.canary.looks import ALL, ARMS, Arm, Cell
from serving_bridge.canary.policy import MetricPolicy
from serving_bridge.canary.tails import bar_of, exceeds
from serving_bridge.database import Database, Row, Session
from serving_bridge.registry import Cohort

Kind = Literal["answer", "score", "feedback", "dropped"]
KINDS: tuple[Kind, ...] = ("answer", "score", "feedback", "dropped")
#: metric, arm, tenant, conversation
_Group = tuple[str, Arm, str, str]
_MAX_MEASURES, _MAX_NAME = 64, 60
#: Rows that one look takes at most; more wait for the next.
MAX_ROWS = 200_000


class OfArm(Protocol):
    """A request that an arm has answered: whose it was, and by which version."""

    @property
    def tenant(self) -> str: ...
    @property
    def conversation(self) -> str: ...
    @property
    def arm(self) -> str: ...
    @property
    def version(self) -> int: ...


@dataclass(frozen=True)
class Observation:
    """What is known of one answer, or of one score or reaction to it.

    Attributes:
      kind: `answer` once for each answer, by the gateway; `score` and `feedback` when they come; `dropped` with the
        measure `count` where a writer lost observations.
      arm, version: that answered; -1 where none of the arm's replicas could be asked.
      tenant, conversation: names or hashes, no text.
      shadow: whether no user saw it.
      measures: metric -> value; nothing for what is not known.
      at_s: seconds since the epoch.

    Raises:
      CanaryError: a name or a value can't be kept.
    """

    namespace: str
    kind: Kind
    arm: str
    version: int
    tenant: str
    conversation: str
    measures: Mapping[str, float]
    shadow: bool = False
    at_s: float = 0.0

    def __post_init__(self) -> None:
        for what, name in (("tenant", self.tenant), ("conversation", self.conversation)):
            if self.kind != "dropped" and not (PLAIN_NAME.fullmatch(name) and len(name) <= 128):
                raise CanaryError(f"{what} {quoted(name, 60)}: expected letters, digits, dots, dashes and underscores")
        if self.kind not in KINDS or self.arm not in ARMS or not -1 <= self.version < 2**53:
            raise CanaryError(
                f"an observation of kind {quoted(self.kind, 20)}, arm {quoted(self.arm, 20)} and version "
                f"{self.version} can't be kept; expected one of {', '.join(KINDS)} and of {', '.join(ARMS)}"
            )
        if len(self.measures) > _MAX_MEASURES:
            raise CanaryError(f"an observation has {len(self.measures)} measures, expected at most {_MAX_MEASURES}")
        for name, value in self.measures.items():
            if len(name) > _MAX_NAME or isinstance(value, str) or not math.isfinite(value):
                raise CanaryError(f"measure {quoted(name, 60)} is {quoted(value, 40)}, expected a finite number")


_INSERT = (
    "INSERT INTO observations (at_s, namespace, kind, arm, version, tenant, conversation, shadow, measures) "
    "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
)


def _rows(observations: Iterable[Observation]) -> list[Row]:
    return [
        (
            one.at_s,
            one.namespace,
            one.kind,
            one.arm,
            one.version,
            one.tenant,
            one.conversation,
            int(one.shadow),
            msgspec.json.encode({name: float(value) for name, value in one.measures.items()}).decode(),
        )
        for one in observations
    ]


class ObservationLog:
    """Observations in a database, in the order in which they were written."""

    def __init__(self, database: Database) -> None:
        self._db = database

    def add(self, observations: Iterable[Observation]) -> None:
        """Adds them in one transaction. Not synced: who loses a machine loses its last second."""
        if rows := _rows(observations):
            self._db.write(lambda session: session.executemany(_INSERT, rows), synced=False)

    def mark(self, source: str) -> int:
        """How far a source was read: the number that it last gave; 0 before it gave any."""
        find = "SELECT sequence FROM observation_marks WHERE source = ?"
        found = self._db.read(lambda session: session.execute(find, (source,)))
        return found[0][0] if found else 0

    def add_marked(self, observations: Iterable[Observation], source: str, before: int, until: int) -> bool:
        """Adds observations that a source gave after `before` and up to `until`, in one transaction with its mark.

        Returns:
          False, with nothing added, where the mark is not at `before` any more: another reader was there.
        """
        rows = _rows(observations)

        def work(session: Session) -> bool:
            session.execute("INSERT INTO observation_marks VALUES (?, 0) ON CONFLICT DO NOTHING", (source,))
            moved = session.execute(
                "UPDATE observation_marks SET sequence = ? WHERE source = ? AND sequence = ? RETURNING source",
                (until, source, before),
            )
            if moved and rows:
                session.executemany(_INSERT, rows)
            return bool(moved)

        return self._db.write(work)

    def last(self, namespace: str) -> int:
        """The number of the newest one; 0 where there is none."""
        find = "SELECT coalesce(max(sequence), 0) FROM observations WHERE namespace = ?"
        return self._db.read(lambda session: session.execute(find, (namespace,)))[0][0]

    def after(self, namespace: str, sequence: int, *, limit: int = MAX_ROWS) -> list[Row]:
        """(sequence, kind, arm, version, tenant, conversation, shadow, measures), oldest first."""
        find = (
            "SELECT sequence, kind, arm, version, tenant, conversation, shadow, measures FROM observations "
            "WHERE namespace = ? AND sequence > ? ORDER BY sequence LIMIT ?"
        )
        return self._db.read(lambda session: session.execute(find, (namespace, sequence, limit)))

    def timed_after(
        self, namespace: str, sequence: int, *, limit: int
    ) -> list[tuple[int, float, str, int, bool, dict[str, float]]]:
        """(sequence, seconds since the epoch, arm, version, shadow, measures), oldest first; no dropped ones."""
        find = (
            "SELECT sequence, at_s, arm, version, shadow, measures FROM observations "
            "WHERE namespace = ? AND sequence > ? AND kind <> 'dropped' ORDER BY sequence LIMIT ?"
        )
        rows = self._db.read(lambda session: session.execute(find, (namespace, sequence, limit)))
        return [(*row[:4], bool(row[4]), _measures(row[5])) for row in rows]

    def purge(self, before_s: float) -> int:
        """Removes those that are older, and says how many."""

        def work(session: Session) -> int:
            ((number,),) = session.execute("SELECT count(*) FROM observations WHERE at_s < ?", (before_s,))
            session.execute("DELETE FROM observations WHERE at_s < ?", (before_s,))
            return number

        return self._db.write(work)


@dataclass(frozen=True)
class Seen:
    """What a look found in the observations; fields as in `Look`."""

    until: int
    answers: tuple[int, int] = (0, 0)
    conversations: tuple[int, int] = (0, 0)
    dropped: int = 0
    covered: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    cells: Sequence[Cell] = ()
    bars: Mapping[str, float] = field(default_factory=dict)


class Source(Protocol):
    """Where a controller has its observations from."""

    def last(self, namespace: str) -> int:
        """The newest observation; a rollout begins after it."""

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
        """What came after an observation.

        Args:
          canary, stable: weight versions of the entries behind the arms.
          shadow: the canary's answers are those that no user saw.
          cohort: the only tenants that are compared: nobody else is dealt out at random; None for all.
          bars: metric of a tail -> its bar for these observations.
        """


class LogSource:
    """Implements `Source` over an `ObservationLog`."""

    def __init__(self, log: ObservationLog) -> None:
        self._log = log
        self.last = log.last

    def seen(
        self,
        namespace: str,
        after: int,
        *,
        canary: int,
        stable: int,
        shadow: bool,
        metrics: Sequence[MetricPolicy],
        cohort: Cohort | None = None,
        bars: Mapping[str, float] | None = None,
    ) -> Seen:
        rows = self._log.after(namespace, after)
        versions = {"canary": canary, "stable": stable}
        return summed(rows, after, versions=versions, shadow=shadow, metrics=metrics, cohort=cohort, bars=bars or {})


def summed(
    rows: Sequence[Row],
    after: int,
    *,
    versions: Mapping[str, int],
    shadow: bool,
    metrics: Sequence[MetricPolicy],
    cohort: Cohort | None = None,
    bars: Mapping[str, float] | None = None,
) -> Seen:
    """The sums of rows as `ObservationLog.after` gives them; rows of other versions or tenants than asked are left out.

    The answers of a conversation are not independent: a conversation counts once, with the mean of its values.
    """
    values: dict[_Group, list[float]] = {}
    talks: dict[str, set[str]] = {"canary": set(), "stable": set()}
    answers = {"canary": 0, "stable": 0}
    covered: dict[str, dict[str, int]] = {}
    tails: dict[str, list[float]] = {one.name: [] for one in metrics if one.measure.tail_of}
    dropped, until = 0, after
    for sequence, kind, arm, version, tenant, conversation, is_shadow, measures in rows:
        until = sequence
        found = _measures(measures)
        if kind == "dropped":
            dropped += int(found.get("count", 1))
            continue
        if arm not in versions or version not in (-1, versions[arm]) or bool(is_shadow) != (shadow and arm == "canary"):
            continue
        if cohort is not None and not cohort.has(tenant):
            continue
        talk = f"{tenant}/{conversation}"
        if kind == "answer":
            answers[arm] += 1
            talks[arm].add(talk)
        for metric in metrics:
            name, value = metric.name, found.get(metric.measure.tail_of or metric.name)
            if value is None or (number := metric.measure.scaled(value)) is None:
                continue
            covered.setdefault(name, {"canary": 0, "stable": 0})[arm] += 1
            if name in tails:
                number = exceeds(value, (bars or {}).get(name), metric.margin, arm)
                if arm == "stable":
                    tails[name].append(value)
            if number is not None:
                values.setdefault((name, arm, tenant, talk), []).append(number)
    quantiles = {one.name: one.measure.quantile for one in metrics}
    new_bars = {name: bar for name, of in tails.items() if (bar := bar_of(of, quantiles[name])) is not None}
    return Seen(
        until=until,
        answers=(answers["canary"], answers["stable"]),
        conversations=(len(talks["canary"]), len(talks["stable"])),
        dropped=dropped,
        covered={name: (of["canary"], of["stable"]) for name, of in sorted(covered.items())},
        cells=_cells(values, {one.name: one.per_tenant for one in metrics}),
        bars=new_bars,
    )


def _measures(text: str) -> dict[str, float]:
    """Of a row; nothing for one that nobody of ours wrote: its answer then counts as one without values."""
    try:
        return msgspec.json.decode(text, type=dict[str, float])
    except msgspec.MsgspecError:
        return {}


def _cells(values: Mapping[_Group, Sequence[float]], per_tenant: Mapping[str, bool]) -> list[Cell]:
    sums: dict[tuple[str, Arm, str], list[float]] = {}
    for (name, arm, tenant, _), of_conversation in values.items():
        mean = sum(of_conversation) / len(of_conversation)
        for group in (ALL, tenant) if per_tenant[name] else (ALL,):
            kept = sums.setdefault((name, arm, group), [0.0, 0.0, 0.0])
            kept[0] += 1
            kept[1] += mean
            kept[2] += mean * mean
    return [Cell(*key, *kept) for key, kept in sums.items()]
