"""Traffic splits: which share of a namespace's conversations its canary answers, and which it sees as a copy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import msgspec

from learner_jax.contracts import quoted
from learner_jax.runtime import PLAIN_NAME
from serving_bridge.database import Session
from serving_bridge.registry import rows
from serving_bridge.registry.cohort import Cohort
from serving_bridge.registry.errors import RegistryError, RegistryIntegrityError

STABLE, CANARY = "stable", "canary"
MAX_TENANTS = 10_000
MAX_TENANT = 64
_SHOWN_TENANTS = 5
_COLUMNS = "canary_share, shadow_share, tenants, revision, tenant_share, within"


@dataclass(frozen=True)
class TrafficChange:
    """What a split shall be from now on; the default sends everything to `stable`.

    Attributes:
      canary_share: of the conversations, 0 to 1.
      shadow_share: of the requests that `stable` answers, 0 to 1: the canary gets a copy, and no user its answer.
      tenants: whose conversations go to the canary, while nobody else's do.
      tenant_share: of all tenants, 0 to 1, of which the same holds; they are chosen by the hash of their names. Without
        `tenants` and `tenant_share` the split is by conversation, whoever asks.
      within: share of these tenants' conversations that go to the canary. `canary_share` then says only how much
        traffic the canary gets, by which replicas are dealt out.

    Raises:
      RegistryError: a share or a tenant is none.
    """

    canary_share: float = 0.0
    shadow_share: float = 0.0
    tenants: tuple[str, ...] = ()
    tenant_share: float = 0.0
    within: float = 1.0

    def __post_init__(self) -> None:
        for name in ("canary_share", "shadow_share", "tenant_share", "within"):
            share = getattr(self, name)
            if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 1:
                raise RegistryError(f"{name} is {quoted(share, 40)}, expected 0 to 1, e.g. 0.05")
            object.__setattr__(self, name, float(share))
        bad = [name for name in self.tenants if not _is_tenant(name)]
        if bad or len(self.tenants) > MAX_TENANTS:
            raise RegistryError(
                f"tenants: {quoted(bad[0] if bad else len(self.tenants), 80)}, expected at most {MAX_TENANTS} names of "
                f"tenants, e.g. acme"
            )
        object.__setattr__(self, "tenants", tuple(sorted(set(self.tenants))))
        has_cohort = bool(self.tenants or self.tenant_share)
        if has_cohort and not self.canary_share:
            raise RegistryError(
                "tenants are named for the canary, and canary_share is 0: set it to the share of traffic that they are"
            )
        if not has_cohort and self.within != 1:
            raise RegistryError(f"within is {self.within:g}, and no tenants are named; expected 1")

    @property
    def needs_canary(self) -> bool:
        """Whether any request would go to the canary."""
        return self.canary_share > 0 or self.shadow_share > 0


@dataclass(frozen=True)
class TrafficSplit:
    """The split of a namespace as it stands; shares and tenants as in `TrafficChange`.

    Attributes:
      revision: counts the changes; 0 where none was made.
    """

    namespace: str
    canary_share: float = 0.0
    shadow_share: float = 0.0
    tenants: tuple[str, ...] = ()
    revision: int = 0
    tenant_share: float = 0.0
    within: float = 1.0

    def cohort(self, salt: str) -> Cohort | None:
        """Who may be answered by the canary; None for everybody. `salt` is the canary's entry, as text."""
        return cohort_of(self.tenants, self.tenant_share, salt)

    def named(self) -> str:
        """The tenants that it is for, as people read it; "" for everybody."""
        names, more = ", ".join(self.tenants[:_SHOWN_TENANTS]), len(self.tenants) - _SHOWN_TENANTS
        named = f"{names} and {more} more" if more > 0 else names
        shard = f"{self.tenant_share:.2%} of all tenants" if self.tenant_share else ""
        return " and ".join(filter(None, (named, shard)))

    def told(self) -> str:
        """The split as people read it."""
        if not self.canary_share:
            said = "stable answers everything"
        elif named := self.named():
            part = f"{self.within:.2%} of the conversations of " if self.within < 1 else ""
            said = f"canary answers {part}{named}, about {self.canary_share:.2%} of the traffic"
        else:
            said = f"canary answers {self.canary_share:.2%} of the conversations"
        return f"{said}; {self.shadow_share:.2%} are copied to it" if self.shadow_share else said


@dataclass(frozen=True)
class TrafficRecord:
    """One change of a split.

    Attributes:
      move: number of the move that it was made with; None where no alias moved.
      token: of the lease that it was made under.
    """

    split: TrafficSplit
    move: int | None
    token: int
    actor: str
    reason: str
    created_s: float


@dataclass(frozen=True)
class Placed:
    """An entry that an alias names, as who serves it needs it.

    Attributes:
      weight_version: in the weight store of its namespace.
      content: identity of the weights.
    """

    number: int
    weight_version: int
    content: str
    stage: str


@dataclass(frozen=True)
class Placement:
    """Aliases and traffic of a namespace at one moment.

    Attributes:
      aliases: alias -> entry.
    """

    namespace: str
    aliases: Mapping[str, Placed]
    traffic: TrafficSplit

    @property
    def stable(self) -> Placed | None:
        return self.aliases.get(STABLE)

    @property
    def canary(self) -> Placed | None:
        return self.aliases.get(CANARY)


def read_split(session: Session, namespace: str) -> TrafficSplit:
    """The split as it stands; everything to `stable` where none was ever made."""
    found = session.execute(f"SELECT {_COLUMNS} FROM traffic WHERE namespace = ?", (namespace,))
    return _split(namespace, *found[0]) if found else TrafficSplit(namespace)


def read_placement(session: Session, namespace: str) -> Placement:
    """Aliases and split. Raises `RegistryIntegrityError` where an arm's alias names no entry, or a row is none."""
    found = session.execute(
        "SELECT alias, a.number, e.number, weight_version, content, stage FROM aliases a LEFT JOIN entries e "
        "ON e.namespace = a.namespace AND e.number = a.number WHERE a.namespace = ? ORDER BY alias",
        (namespace,),
    )
    placed = {}
    for alias, number, entry, version, content, stage in found:
        if entry is None:
            if alias in (STABLE, CANARY):
                raise RegistryIntegrityError(rows.alias_problems(session, namespace)[alias])
            continue  # nobody is served by it
        rows.checked_row(stage, namespace, number)
        placed[alias] = Placed(number, version, content, stage)
    return Placement(namespace, placed, read_split(session, namespace))


def read_records(session: Session, namespace: str, limit: int) -> list[TrafficRecord]:
    """The newest changes, newest first."""
    found = session.execute(
        f"SELECT {_COLUMNS}, move, token, actor, reason, created_s "
        "FROM traffic_changes WHERE namespace = ? ORDER BY sequence DESC LIMIT ?",
        (namespace, limit),
    )
    return [TrafficRecord(_split(namespace, *row[:6]), *row[6:]) for row in found]


def after_move(session: Session, namespace: str, before: Mapping[str, int]) -> TrafficChange | None:
    """What a move that says nothing of traffic does to it: another canary, or none, begins without any."""
    old = read_split(session, namespace)
    if rows.aliases(session, namespace).get(CANARY) == before.get(CANARY):
        return None
    return TrafficChange() if old.canary_share or old.shadow_share else None


def change(session: Session, namespace: str, wanted: TrafficChange, by: rows.By, *, move: int | None) -> TrafficSplit:
    """Sets the split and records it. The caller has checked the lease in this transaction.

    Raises:
      RegistryError: the canary is to get requests, and there is none that may be served.
    """
    if wanted.needs_canary:
        number = rows.aliases(session, namespace).get(CANARY)
        if number is None:
            raise RegistryError(
                f"{namespace} has no alias canary, and the split gives it {wanted.canary_share:.2%} of the traffic and "
                f"{wanted.shadow_share:.2%} as a shadow: move canary to an entry in the same step, or set both to 0"
            )
        rows.check_servable(rows.standing(session, namespace, number), unproven=True)
    revision = read_split(session, namespace).revision + 1
    tenants = msgspec.json.encode(wanted.tenants).decode()
    values = (wanted.canary_share, wanted.shadow_share, tenants, revision, wanted.tenant_share, wanted.within)
    session.execute(
        f"INSERT INTO traffic (namespace, {_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (namespace) DO UPDATE "
        f"SET {', '.join(f'{name} = excluded.{name}' for name in _COLUMNS.split(', '))}",
        (namespace, *values),
    )
    session.execute(
        f"INSERT INTO traffic_changes (namespace, {_COLUMNS}, move, token, actor, reason, created_s) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (namespace, *values, move, by.token, quoted(by.actor, 200), quoted(by.reason, 1000), by.now_s),
    )
    return _split(namespace, *values)


def cohort_of(tenants: Iterable[str], share: float, salt: str) -> Cohort | None:
    """Named tenants and a share of all; None where neither is given."""
    named = frozenset(tenants)
    return Cohort(named, share, salt) if named or share else None


def _split(
    namespace: str, canary: float, shadow: float, tenants: str, revision: int, tenant_share: float, within: float
) -> TrafficSplit:
    """A row; raises `RegistryIntegrityError` where it holds what no split can."""
    try:
        names = msgspec.json.decode(tenants, type=tuple[str, ...])
        wanted = TrafficChange(canary, shadow, names, tenant_share, within)
    except (msgspec.MsgspecError, RegistryError) as error:
        raise RegistryIntegrityError(
            f"traffic split {revision} of {namespace} is none: its row was changed ({quoted(str(error), 300)})"
        ) from None
    return TrafficSplit(namespace, canary, shadow, wanted.tenants, revision, tenant_share, within)


def _is_tenant(name: object) -> bool:
    return isinstance(name, str) and len(name) <= MAX_TENANT and PLAIN_NAME.fullmatch(name) is not None
