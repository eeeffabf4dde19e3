"""Aliases of the registry and the traffic between them: who may change them, what they are, and what they were."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from learner_jax.contracts import quoted
from serving_bridge.database import Database, Session
from serving_bridge.registry import leases, rows
from serving_bridge.registry import traffic as splits
from serving_bridge.registry.entry import checked_name
from serving_bridge.registry.errors import RegistryError, RegistryIntegrityError
from serving_bridge.registry.leases import RegistryLease
from serving_bridge.registry.rows import By, Move
from serving_bridge.registry.traffic import Placement, TrafficChange, TrafficRecord, TrafficSplit


class Aliases:
    """Aliases of all namespaces in one database.

    Args:
      clock: seconds since the epoch.
    """

    def __init__(self, database: Database, *, clock: Callable[[], float]) -> None:
        self._db, self._clock = database, clock

    def current(self, namespace: str) -> dict[str, int]:
        """Alias -> number of its entry."""
        checked_name(namespace, "namespace")
        return self._db.read(lambda session: rows.aliases(session, namespace))

    def resolve(self, namespace: str, name: str) -> int:
        """The number that an alias or a number in digits means.

        Raises:
          RegistryError: there is no such alias, or no such entry.
          RegistryIntegrityError: the alias names an entry that does not exist.
        """
        if name.isascii() and name.isdigit() and len(name) < 17:
            return self._db.read(lambda session: rows.standing(session, namespace, int(name))).entry.number
        aliases = self.current(namespace)
        if problem := self._db.read(lambda session: rows.alias_problems(session, namespace)).get(name):
            raise RegistryIntegrityError(problem)
        if name not in aliases:
            held = ", ".join(aliases) or "none yet"
            raise RegistryError(f"{namespace} has no alias {quoted(name, 60)}; it has {held}")
        return aliases[name]

    def take_lease(self, namespace: str, holder: str, duration_s: float, *, by_force: bool = False) -> RegistryLease:
        """The aliases of a namespace, as `leases.take`."""
        return self.take_named_lease(checked_name(namespace, "namespace"), holder, duration_s, by_force=by_force)

    def take_named_lease(
        self, namespace: str, holder: str, duration_s: float, *, by_force: bool = False
    ) -> RegistryLease:
        """A lease of another name, for what is not in the database; as `leases.take`."""
        now_s = self._clock()
        return self._db.write(
            lambda session: leases.take(session, namespace, holder, duration_s, now_s, by_force=by_force)
        )

    def check_lease(self, lease: RegistryLease) -> None:
        """Raises `NotHolderError` if it was taken over."""
        self._db.write(lambda session: leases.check(session, lease))

    def release_lease(self, lease: RegistryLease) -> None:
        self._db.write(lambda session: leases.release(session, lease))

    def holder(self, namespace: str) -> RegistryLease | None:
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
        traffic: TrafficChange | None = None,
        unproven: bool = False,
        also: Callable[[Session], None] | None = None,
    ) -> int:
        """Moves aliases together: all of them, or none.

        Args:
          aliases: alias -> number of an entry, or None to remove it.
          expected: what aliases must be before; None for one that must not exist.
          stages: number -> stage that entries get in the same transaction.
          traffic: the split from now on, set in the same transaction. Without one the split stays, unless the
            canary became another entry or none: it then begins without traffic.
          unproven: somebody takes the responsibility for entries that no evaluation gate has passed.
          also: what else is done in the transaction; what it raises undoes the move.

        Returns:
          Number of the move.

        Raises:
          NotHolderError: the lease is not held any more.
          RegistryError: an entry does not exist, its weights are gone, it was rejected or rolled back, no gate has
            passed it, an alias is not what was expected, or traffic is to go to a canary that is not there. Nothing
            was moved.
        """
        namespace, now_s = lease.namespace, self._clock()
        for alias in aliases:
            checked_name(alias, "alias")
        if not aliases or not reason.strip():
            raise RegistryError("a move needs at least one alias and a reason")

        def work(session: Session) -> int:
            leases.check(session, lease)
            current = rows.aliases(session, namespace)
            rows.check_expected(current, expected or {}, namespace)
            for number, stage in (stages or {}).items():
                rows.set_stage(session, namespace, number, stage, actor, reason, now_s, unproven=unproven)
            for number in sorted({number for number in aliases.values() if number is not None}):
                rows.check_servable(rows.standing(session, namespace, number), unproven=unproven)
            by = By(lease.token, actor, reason, now_s)
            move = rows.record_move(session, namespace, current, aliases, by)
            wanted = traffic or splits.after_move(session, namespace, current)
            if wanted is not None:
                splits.change(session, namespace, wanted, by, move=move)
            if also is not None:
                also(session)
            return move

        return self._db.write(work)

    def under(self, lease: RegistryLease, also: Callable[[Session], None]) -> None:
        """Runs `also` in a transaction in which the lease is held.

        Raises:
          NotHolderError: it is not held any more; nothing was changed.
        """

        def work(session: Session) -> None:
            leases.check(session, lease)
            also(session)

        self._db.write(work)

    def traffic(self, namespace: str) -> TrafficSplit:
        """The traffic split as it stands; everything goes to `stable` where none was made."""
        checked_name(namespace, "namespace")
        return self._db.read(lambda session: splits.read_split(session, namespace))

    def placement(self, namespace: str) -> Placement:
        """What aliases name, and the split between them, at one moment: never old aliases with a new split."""
        checked_name(namespace, "namespace")
        return self._db.read(lambda session: splits.read_placement(session, namespace))

    def set_traffic(self, lease: RegistryLease, change: TrafficChange, *, actor: str, reason: str) -> TrafficSplit:
        """Sets the traffic split of a namespace, and leaves its aliases where they are.

        Raises:
          NotHolderError: the lease is not held any more.
          RegistryError: traffic is to go to a canary that is not there or may not be served, or no reason is given.
            Nothing was changed.
        """
        now_s = self._clock()
        if not reason.strip():
            raise RegistryError("a change of traffic needs a reason")

        def work(session: Session) -> TrafficSplit:
            leases.check(session, lease)
            return splits.change(session, lease.namespace, change, By(lease.token, actor, reason, now_s), move=None)

        return self._db.write(work)

    def traffic_history(self, namespace: str, *, limit: int = 50) -> list[TrafficRecord]:
        """The newest changes of the split, newest first."""
        return self._db.read(lambda session: splits.read_records(session, namespace, limit))

    def history(self, namespace: str, *, alias: str | None = None, limit: int = 50) -> list[Move]:
        """The newest moves, newest first."""
        where, parameters = ("AND alias = ?", [alias]) if alias is not None else ("", [])
        found = self._db.read(
            lambda session: session.execute(
                f"SELECT move, alias, old, new, token, actor, reason, created_s FROM moves WHERE namespace = ? {where} "
                f"ORDER BY sequence DESC LIMIT ?",
                (namespace, *parameters, limit),
            )
        )
        return [Move(*row) for row in found]
