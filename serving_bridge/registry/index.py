"""The registry's entries and what happened to them. Every change is one transaction."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from serving_bridge.database import Database, Session
from serving_bridge.registry import leases, rows
from serving_bridge.registry.aliases import Aliases
from serving_bridge.registry.entry import Entry, checked_name, decode_entry, digest, encode_entry
from serving_bridge.registry.errors import RegistryError
from serving_bridge.registry.leases import RegistryLease
from serving_bridge.registry.rows import Event, Standing

_MAX_LINEAGE = 10_000


class RegistryIndex:
    """Rows of all namespaces in one database.

    Args:
      clock: seconds since the epoch.
    """

    def __init__(self, database: Database, *, clock: Callable[[], float]) -> None:
        self._db, self._clock = database, clock
        self.aliases = Aliases(database, clock=clock)

    def add(
        self, namespace: str, make: Callable[[int, str, float], Entry], *, lease: RegistryLease | None = None
    ) -> Entry:
        """Adds the next entry of a namespace.

        Args:
          make: of (number, `sha256` of the entry before, seconds since the epoch); called within the transaction.
          lease: under which its weights were copied; it must be held still.

        Raises:
          RegistryError: the parent does not exist, or a field holds what it can't.
          NotHolderError: the lease was taken over.
        """
        checked_name(namespace, "namespace")
        now_s = self._clock()

        def work(session: Session) -> Entry:
            rows.lock(session, namespace)
            if lease is not None:
                leases.check(session, lease)
            last = session.execute(
                "SELECT number, sha256 FROM entries WHERE namespace = ? ORDER BY number DESC LIMIT 1", (namespace,)
            )
            number, previous = (last[0][0] + 1, last[0][1]) if last else (1, "")
            entry = make(number, previous, now_s)
            if entry.parent is not None:
                rows.row_of(session, namespace, entry.parent)
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
            rows.record(session, entry.namespace, number, "registered", {}, entry.actor, entry.note, now_s)
            return entry

        return self._db.write(work)

    def standing(self, namespace: str, number: int) -> Standing:
        """Raises `RegistryError` if there is no such entry; `RegistryIntegrityError` if its row was changed."""
        return self._db.read(lambda session: rows.standing(session, namespace, number))

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
            found = session.execute(
                f"SELECT {rows.COLUMNS} FROM entries WHERE {where} ORDER BY number DESC LIMIT ?", (*conditions, limit)
            )
            names = rows.names_of(session, namespace)
            return [rows.read(row, namespace, names) for row in found]

        return self._db.read(work)

    def lineage(self, namespace: str, number: int, *, limit: int = 100) -> list[Standing]:
        """An entry and its ancestors, itself first."""
        if not 1 <= limit <= _MAX_LINEAGE:
            raise RegistryError(f"limit {limit}: expected 1 to {_MAX_LINEAGE} ancestors")

        def work(session: Session) -> list[Standing]:
            names = rows.names_of(session, namespace)
            found = rows.line_of(session, namespace, number, limit)
            ancestors: list[Standing] = []
            current: int | None = number
            while current is not None and len(ancestors) < limit:  # by the documents, which nobody can change unseen
                row = found.get(current) or rows.row_of(session, namespace, current)
                ancestors.append(rows.read(row, namespace, names))
                current = ancestors[-1].entry.parent
            return ancestors

        return self._db.read(work)

    def children(self, namespace: str, number: int, *, limit: int = 100) -> list[int]:
        """Numbers of the entries whose parent this is, in ascending order."""
        found = self._db.read(
            lambda session: session.execute(
                "SELECT number FROM entries WHERE namespace = ? AND parent = ? ORDER BY number LIMIT ?",
                (namespace, number, limit),
            )
        )
        return [child for (child,) in found]

    def set_stage(
        self, namespace: str, number: int, stage: str, *, actor: str, reason: str, unproven: bool = False
    ) -> None:
        """Moves an entry to another stage. A candidate passes by its newest report, whose verdict is "passed".

        Args:
          unproven: `actor` takes the responsibility for `reason` where there is no such report.

        Raises:
          RegistryError: there is no such entry, its stage can't be followed by this one, or no gate has passed it.
        """
        now_s = self._clock()

        def work(session: Session) -> None:
            rows.lock(session, namespace)
            rows.set_stage(session, namespace, number, stage, actor, reason, now_s, unproven=unproven)

        self._db.write(work)

    def add_report(self, namespace: str, number: int, body: Mapping[str, Any], *, actor: str, reason: str = "") -> None:
        """Keeps an evaluation's result with an entry. Raises `RegistryError` if there is no such entry."""
        self._add_event(namespace, number, "report", body, actor=actor, reason=reason)

    def add_signature(self, namespace: str, number: int, body: Mapping[str, Any], *, actor: str) -> None:
        """Keeps a signature with an entry. Raises `RegistryError` if there is no such entry."""
        self._add_event(namespace, number, "signature", body, actor=actor, reason="")

    def _add_event(
        self, namespace: str, number: int, kind: str, body: Mapping[str, Any], *, actor: str, reason: str
    ) -> None:
        now_s = self._clock()

        def work(session: Session) -> None:
            rows.lock(session, namespace)  # who passes the entry at this moment reads this report, or the one before
            rows.row_of(session, namespace, number)
            rows.record(session, namespace, number, kind, body, actor, reason, now_s)

        self._db.write(work)

    def events(self, namespace: str, number: int) -> list[Event]:
        """What happened to an entry, oldest first. Raises `RegistryIntegrityError` if a row was changed."""
        found = self._db.read(
            lambda session: session.execute(
                "SELECT sequence, namespace, number, kind, body, actor, reason, created_s FROM events "
                "WHERE namespace = ? AND number = ? ORDER BY sequence",
                (namespace, number),
            )
        )
        return [rows.read_event(row) for row in found]

    def weights_in_use(self, namespace: str) -> dict[int, int]:
        """Weight version -> newest entry that it is kept for."""
        found = self._db.read(
            lambda session: session.execute(
                "SELECT weight_version, max(number) FROM entries WHERE namespace = ? AND has_weights = 1 "
                "GROUP BY weight_version",
                (namespace,),
            )
        )
        return dict(found)

    def weights_of(self, namespace: str, content: str) -> int | None:
        """The weight version of this content that was kept last, if one is kept still."""
        found = self._db.read(
            lambda session: session.execute(
                "SELECT weight_version FROM entries WHERE namespace = ? AND content = ? AND has_weights = 1 "
                "ORDER BY number DESC LIMIT 1",
                (namespace, content),
            )
        )
        return found[0][0] if found else None

    def forget_weights(self, namespace: str, numbers: list[int], *, actor: str, reason: str) -> list[int]:
        """Marks weights as gone, before they are deleted; leaves out what an alias names by now. Returns the rest."""
        now_s = self._clock()

        def work(session: Session) -> list[int]:
            rows.lock(session, namespace)
            named = set(rows.aliases(session, namespace).values())
            done = []
            for number in sorted(set(numbers) - named):
                session.execute(
                    "UPDATE entries SET has_weights = 0 WHERE namespace = ? AND number = ?", (namespace, number)
                )
                rows.record(session, namespace, number, "weights_removed", {}, actor, reason, now_s)
                done.append(number)
            return done

        return self._db.write(work)

    def check_chain(self, namespace: str) -> list[str]:
        """What is wrong with the entries and aliases of a namespace; nothing if each is the one that was registered."""
        problems = list(self._db.read(lambda session: rows.alias_problems(session, namespace)).values())
        found = self._db.read(
            lambda session: session.execute(
                "SELECT number, document, sha256, stage, parent, content, weight_version FROM entries "
                "WHERE namespace = ? ORDER BY number",
                (namespace,),
            )
        )
        previous = ""
        for expected, (number, document, sha256, stage, *columns) in enumerate(found, 1):
            name = f"{namespace}/{number}"
            try:
                rows.checked_row(stage, namespace, number)
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
