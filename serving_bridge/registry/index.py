"""The registry's rows: entries, what happened to them, aliases and their history. Every change is one transaction."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from learner_jax.contracts import quoted
from serving_bridge.database import Database, Row, Session
from serving_bridge.registry import leases
from serving_bridge.registry.entry import (
    CLOSED,
    UNPROVEN,
    Entry,
    checked_name,
    checked_stage,
    decode_entry,
    digest,
    encode_entry,
)
from serving_bridge.registry.errors import RegistryError, RegistryIntegrityError
from serving_bridge.registry.leases import RegistryLease

_COLUMNS = "number, document, sha256, stage, has_weights"
_MAX_LINEAGE = 10_000


@dataclass(frozen=True)
class Standing:
    """An entry and where it stands now.

    Attributes:
      aliases: that name it, sorted.
      has_weights: whether its weights are still kept.
    """

    entry: Entry
    stage: str
    aliases: tuple[str, ...]
    has_weights: bool


@dataclass(frozen=True)
class Event:
    """Something that happened to an entry: a new stage, a report, removed weights."""

    sequence: int
    namespace: str
    number: int
    kind: str
    body: Mapping[str, Any]
    actor: str
    reason: str
    created_s: float


@dataclass(frozen=True)
class Move:
    """One alias in one move; aliases that moved together have the same `move`. None stands for no entry."""

    move: int
    alias: str
    old: int | None
    new: int | None
    token: int
    actor: str
    reason: str
    created_s: float


class RegistryIndex:
    """Rows of all namespaces in one database.

    Args:
      clock: seconds since the epoch.
    """

    def __init__(self, database: Database, *, clock: Callable[[], float]) -> None:
        self._db, self._clock = database, clock

    def add(self, namespace: str, make: Callable[[int, str, float], Entry]) -> Entry:
        """Adds the next entry of a namespace.

        Args:
          make: of (number, `sha256` of the entry before, seconds since the epoch); called within the transaction.

        Raises:
          RegistryError: the parent does not exist, or a field holds what it can't.
        """
        now_s = self._clock()

        def work(session: Session) -> Entry:
            _lock(session, namespace)
            last = session.execute(
                "SELECT number, sha256 FROM entries WHERE namespace = ? ORDER BY number DESC LIMIT 1", (namespace,)
            )
            number, previous = (last[0][0] + 1, last[0][1]) if last else (1, "")
            entry = make(number, previous, now_s)
            if entry.parent is not None:
                _standing_row(session, namespace, entry.parent)
            document = encode_entry(entry)
            session.execute(
                "INSERT INTO entries VALUES (?, ?, ?, ?, ?, ?, ?, 'candidate', 1, ?)",
                (
                    namespace,
                    number,
                    entry.parent,
                    document,
                    digest(document),
                    entry.content,
                    entry.weight_version,
                    now_s,
                ),
            )
            _record(session, entry.namespace, number, "registered", {}, entry.actor, entry.note, now_s)
            return entry

        return self._db.write(work)

    def standing(self, namespace: str, number: int) -> Standing:
        """Raises `RegistryError` if there is no such entry; `RegistryIntegrityError` if its row was changed."""
        return self._db.read(lambda session: _standing(session, namespace, number))

    def entries(
        self, namespace: str, *, limit: int = 50, before: int | None = None, stage: str | None = None
    ) -> list[Standing]:
        """The newest entries, newest first; `before` a number, for the next page."""
        checked_name(namespace, "namespace")
        where, parameters = "namespace = ?", [namespace]
        conditions: list[Any] = list(parameters)
        if before is not None:
            where += " AND number < ?"
            conditions.append(before)
        if stage is not None:
            where += " AND stage = ?"
            conditions.append(stage)

        def work(session: Session) -> list[Standing]:
            rows = session.execute(
                f"SELECT {_COLUMNS} FROM entries WHERE {where} ORDER BY number DESC LIMIT ?", (*conditions, limit)
            )
            names = _names(session, namespace)
            return [_read(row, namespace, names) for row in rows]

        return self._db.read(work)

    def namespaces(self) -> list[str]:
        """Those that have entries, sorted."""
        rows = self._db.read(
            lambda session: session.execute("SELECT DISTINCT namespace FROM entries ORDER BY namespace")
        )
        return [name for (name,) in rows]

    def lineage(self, namespace: str, number: int, *, limit: int = 100) -> list[Standing]:
        """An entry and its ancestors, itself first."""
        if not 1 <= limit <= _MAX_LINEAGE:
            raise RegistryError(f"limit {limit}: expected 1 to {_MAX_LINEAGE} ancestors")

        def work(session: Session) -> list[Standing]:
            names = _names(session, namespace)
            found: list[Standing] = []
            current: int | None = number
            while current is not None and len(found) < limit:
                found.append(_read(_standing_row(session, namespace, current), namespace, names))
                current = found[-1].entry.parent
            return found

        return self._db.read(work)

    def children(self, namespace: str, number: int, *, limit: int = 100) -> list[int]:
        """Numbers of the entries whose parent this is, in ascending order."""
        rows = self._db.read(
            lambda session: session.execute(
                "SELECT number FROM entries WHERE namespace = ? AND parent = ? ORDER BY number LIMIT ?",
                (namespace, number, limit),
            )
        )
        return [child for (child,) in rows]

    def set_stage(self, namespace: str, number: int, stage: str, *, actor: str, reason: str) -> None:
        """Moves an entry to another stage.

        Raises:
          RegistryError: there is no such entry, or its stage can't be followed by this one.
        """
        now_s = self._clock()

        def work(session: Session) -> None:
            _lock(session, namespace)
            _set_stage(session, namespace, number, stage, actor, reason, now_s)

        self._db.write(work)

    def add_report(
        self, namespace: str, number: int, body: Mapping[str, Any], *, actor: str, reason: str = ""
    ) -> None:
        """Keeps an evaluation's result with an entry. Raises `RegistryError` if there is no such entry."""
        now_s = self._clock()

        def work(session: Session) -> None:
            _standing_row(session, namespace, number)
            _record(session, namespace, number, "report", body, actor, reason, now_s)

        self._db.write(work)

    def events(self, namespace: str, number: int) -> list[Event]:
        """What happened to an entry, oldest first."""
        rows = self._db.read(
            lambda session: session.execute(
                "SELECT sequence, namespace, number, kind, body, actor, reason, created_s FROM events "
                "WHERE namespace = ? AND number = ? ORDER BY sequence",
                (namespace, number),
            )
        )
        return [Event(*row[:4], msgspec.json.decode(row[4]), *row[5:]) for row in rows]

    def aliases(self, namespace: str) -> dict[str, int]:
        """Alias -> number of its entry."""
        checked_name(namespace, "namespace")
        return self._db.read(lambda session: _aliases(session, namespace))

    def resolve(self, namespace: str, name: str) -> int:
        """The number that an alias or a number in digits means.

        Raises:
          RegistryError: there is no such alias, or no such entry.
        """
        if name.isascii() and name.isdigit() and len(name) < 17:
            return self.standing(namespace, int(name)).entry.number
        aliases = self.aliases(namespace)
        if name not in aliases:
            held = ", ".join(aliases) or "none yet"
            raise RegistryError(f"{namespace} has no alias {quoted(name, 60)}; it has {held}")
        return aliases[name]

    def take_lease(
        self, namespace: str, holder: str, duration_s: float, *, by_force: bool = False
    ) -> RegistryLease:
        """As `leases.take`."""
        checked_name(namespace, "namespace")
        now_s = self._clock()
        return self._db.write(
            lambda session: leases.take(session, namespace, holder, duration_s, now_s, by_force=by_force)
        )

    def release_lease(self, lease: RegistryLease) -> None:
        self._db.write(lambda session: leases.release(session, lease))

    def lease(self, namespace: str) -> RegistryLease | None:
        """The last holder who did not give the lease back."""
        return self._db.read(lambda session: leases.holder_of(session, namespace))

    def move(
        self,
        lease: RegistryLease,
        aliases: Mapping[str, int | None],
        *,
        actor: str,
        reason: str,
        expected: Mapping[str, int | None] | None = None,
        stages: Mapping[int, str] | None = None,
        unproven: bool = False,
    ) -> int:
        """Moves aliases together: all of them, or none.

        Args:
          aliases: alias -> number of an entry, or None to remove it.
          expected: what aliases must be before; None for one that must not exist.
          stages: number -> stage that entries get in the same transaction.
          unproven: somebody takes the responsibility for entries that no evaluation gate has passed.

        Returns:
          Number of the move.

        Raises:
          NotHolderError: the lease is not held any more.
          RegistryError: an entry does not exist, its weights are gone, it was rejected or rolled back, no gate has
            passed it, or an alias is not what was expected. Nothing was moved.
        """
        namespace, now_s = lease.namespace, self._clock()
        for alias in aliases:
            checked_name(alias, "alias")
        if not aliases or not reason.strip():
            raise RegistryError("a move needs at least one alias and a reason")

        def work(session: Session) -> int:
            leases.check(session, lease)
            current = _aliases(session, namespace)
            _check_expected(current, expected or {}, namespace)
            for number, stage in (stages or {}).items():
                _set_stage(session, namespace, number, stage, actor, reason, now_s)
            for number in sorted({number for number in aliases.values() if number is not None}):
                _check_servable(_standing(session, namespace, number), unproven=unproven)
            ((last,),) = session.execute("SELECT coalesce(max(move), 0) FROM moves WHERE namespace = ?", (namespace,))
            for alias, number in sorted(aliases.items()):
                _point(session, namespace, alias, number)
                session.execute(
                    "INSERT INTO moves (namespace, move, alias, old, new, token, actor, reason, created_s) "
                    "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    (namespace, last + 1, alias, current.get(alias), number, lease.token, actor, reason, now_s),
                )
            return last + 1

        return self._db.write(work)

    def moves(self, namespace: str, *, alias: str | None = None, limit: int = 50) -> list[Move]:
        """The newest moves, newest first."""
        where, parameters = ("AND alias = ?", [alias]) if alias is not None else ("", [])
        rows = self._db.read(
            lambda session: session.execute(
                f"SELECT move, alias, old, new, token, actor, reason, created_s FROM moves WHERE namespace = ? {where} "
                f"ORDER BY sequence DESC LIMIT ?",
                (namespace, *parameters, limit),
            )
        )
        return [Move(*row) for row in rows]

    def weights_in_use(self, namespace: str) -> dict[int, int]:
        """Weight version -> newest entry that it is kept for."""
        rows = self._db.read(
            lambda session: session.execute(
                "SELECT weight_version, max(number) FROM entries WHERE namespace = ? AND has_weights = 1 "
                "GROUP BY weight_version",
                (namespace,),
            )
        )
        return dict((version, number) for version, number in rows)

    def weights_of(self, namespace: str, content: str) -> int | None:
        """The kept weight version of this content."""
        rows = self._db.read(
            lambda session: session.execute(
                "SELECT weight_version FROM entries WHERE namespace = ? AND content = ? AND has_weights = 1 LIMIT 1",
                (namespace, content),
            )
        )
        return rows[0][0] if rows else None

    def forget_weights(self, namespace: str, numbers: list[int], *, actor: str, reason: str) -> list[int]:
        """Marks weights as gone, before they are deleted; leaves out what an alias names by now. Returns the rest."""
        now_s = self._clock()

        def work(session: Session) -> list[int]:
            _lock(session, namespace)
            named = set(_aliases(session, namespace).values())
            done = []
            for number in sorted(set(numbers) - named):
                session.execute(
                    "UPDATE entries SET has_weights = 0 WHERE namespace = ? AND number = ?", (namespace, number)
                )
                _record(session, namespace, number, "weights_removed", {}, actor, reason, now_s)
                done.append(number)
            return done

        return self._db.write(work)

    def check_chain(self, namespace: str) -> list[str]:
        """What is wrong with the entries of a namespace; nothing if each is the one that was registered."""
        problems = []
        rows = self._db.read(
            lambda session: session.execute(
                "SELECT number, document, sha256, parent, content, weight_version FROM entries WHERE namespace = ? "
                "ORDER BY number",
                (namespace,),
            )
        )
        previous = ""
        for expected, (number, document, sha256, *columns) in enumerate(rows, 1):
            name = f"{namespace}/{number}"
            try:
                entry = decode_entry(document, sha256, name=name)
            except RegistryError as error:
                problems.append(str(error))
            else:
                if number != expected or entry.number != number or entry.namespace != namespace:
                    problems.append(f"entry {name} is {entry.id}, expected {namespace}/{expected}: a row is gone")
                    break
                if entry.previous != previous:
                    problems.append(f"entry {name} follows {entry.previous[:12]}, expected {previous[:12]}")
                if [entry.parent, entry.content, entry.weight_version] != columns:
                    problems.append(f"entry {name}: its columns say {columns}, its document something else")
            previous = sha256
        return problems


def _lock(session: Session, namespace: str) -> None:
    """Has other writers of a namespace wait until the transaction ends."""
    session.execute("INSERT INTO registry_leases VALUES (?, '', 0, 0) ON CONFLICT (name) DO NOTHING", (namespace,))
    session.execute(f"SELECT token FROM registry_leases WHERE name = ?{session.dialect.for_update}", (namespace,))


def _standing_row(session: Session, namespace: str, number: int) -> Row:
    rows = session.execute(
        f"SELECT {_COLUMNS} FROM entries WHERE namespace = ? AND number = ?", (namespace, number)
    )
    if not rows:
        raise RegistryError(f"{namespace} has no entry {number}; `list` shows those that it has")
    return rows[0]


def _standing(session: Session, namespace: str, number: int) -> Standing:
    return _read(_standing_row(session, namespace, number), namespace, _names(session, namespace))


def _read(row: Row, namespace: str, names: Mapping[int, tuple[str, ...]]) -> Standing:
    number, document, sha256, stage, has_weights = row
    entry = decode_entry(document, sha256, name=f"{namespace}/{number}")
    if (entry.namespace, entry.number) != (namespace, number):
        raise RegistryIntegrityError(f"entry {namespace}/{number} says that it is {entry.id}: rows were exchanged")
    return Standing(entry, stage, names.get(number, ()), bool(has_weights))


def _aliases(session: Session, namespace: str) -> dict[str, int]:
    return dict(
        (alias, number)
        for alias, number in session.execute(
            "SELECT alias, number FROM aliases WHERE namespace = ? ORDER BY alias", (namespace,)
        )
    )


def _names(session: Session, namespace: str) -> dict[int, tuple[str, ...]]:
    names: dict[int, tuple[str, ...]] = {}
    for alias, number in _aliases(session, namespace).items():
        names[number] = (*names.get(number, ()), alias)
    return names


def _check_expected(current: Mapping[str, int], expected: Mapping[str, int | None], namespace: str) -> None:
    for alias, number in expected.items():
        if current.get(alias) != number:
            raise RegistryError(
                f"alias {alias} of {namespace} is {current.get(alias, 'not there')}, expected "
                f"{'none' if number is None else number}: somebody moved it; look again, then decide"
            )


def _check_servable(standing: Standing, *, unproven: bool) -> None:
    entry, stage = standing.entry, standing.stage
    if stage in CLOSED:
        raise RegistryError(f"entry {entry.id} is {stage}: register its weights again to try them once more")
    if not standing.has_weights:
        raise RegistryError(f"the weights of entry {entry.id} were removed: register them again")
    if stage in UNPROVEN and not unproven:
        raise RegistryError(
            f"entry {entry.id} is a {stage} that no evaluation gate has passed: evaluate it first, or take the "
            f"responsibility with a name and a reason (--unproven)"
        )


def _point(session: Session, namespace: str, alias: str, number: int | None) -> None:
    if number is None:
        session.execute("DELETE FROM aliases WHERE namespace = ? AND alias = ?", (namespace, alias))
        return
    session.execute(
        "INSERT INTO aliases VALUES (?, ?, ?) ON CONFLICT (namespace, alias) DO UPDATE SET number = excluded.number",
        (namespace, alias, number),
    )


def _set_stage(
    session: Session, namespace: str, number: int, stage: str, actor: str, reason: str, now_s: float
) -> None:
    old = _standing_row(session, namespace, number)[3]
    checked_stage(old, stage, name=f"{namespace}/{number}")
    session.execute("UPDATE entries SET stage = ? WHERE namespace = ? AND number = ?", (stage, namespace, number))
    _record(session, namespace, number, "stage", {"old": old, "new": stage}, actor, reason, now_s)


def _record(
    session: Session,
    namespace: str,
    number: int,
    kind: str,
    body: Mapping[str, Any],
    actor: str,
    reason: str,
    now_s: float,
) -> None:
    text = msgspec.json.encode(dict(body)).decode()
    session.execute(
        "INSERT INTO events (namespace, number, kind, body, actor, reason, created_s) VALUES (?, ?, ?, ?, ?, ?, ?)",
        (namespace, number, kind, text, quoted(actor, 200), quoted(reason, 1000), now_s),
    )
