"""Rows of the registry's tables, within a transaction that the caller holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from learner_jax.contracts import quoted
from serving_bridge.database import Row, Session
from serving_bridge.registry.entry import (
    CLOSED,
    STAGES,
    UNPROVEN,
    Entry,
    RegisteredFile,
    checked_stage,
    decode_entry,
    is_name,
)
from serving_bridge.registry.errors import RegistryError, RegistryIntegrityError

#: Verdict of a report that lets a candidate pass.
PASSED = "passed"
COLUMNS = "number, document, sha256, stage, has_weights"


@dataclass(frozen=True)
class Standing:
    """An entry and where it stands now.

    Attributes:
      aliases: that name it, sorted.
      has_weights: whether its weights are still kept.
      document: of the entry, as it was registered.
    """

    entry: Entry
    stage: str
    aliases: tuple[str, ...]
    has_weights: bool
    document: str = field(repr=False)


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


@dataclass(frozen=True)
class By:
    """Who changes aliases or traffic, why and when, under which lease."""

    token: int
    actor: str
    reason: str
    now_s: float


def kept_file(event: Event) -> RegisteredFile:
    """The file that a report or a signature is in. Raises `RegistryIntegrityError` for a row that names none."""
    try:
        return msgspec.convert(event.body.get("file"), RegisteredFile)
    except msgspec.ValidationError as error:
        raise RegistryIntegrityError(
            f"{event.kind} of entry {event.namespace}/{event.number} (event {event.sequence}) names no file: "
            f"{quoted(str(error), 200)}; its row was changed"
        ) from error


def lock(session: Session, namespace: str) -> None:
    """Has other writers of a namespace wait until the transaction ends."""
    session.execute("INSERT INTO registry_leases VALUES (?, '', 0, 0) ON CONFLICT (name) DO NOTHING", (namespace,))
    session.execute(f"SELECT token FROM registry_leases WHERE name = ?{session.dialect.for_update}", (namespace,))


def row_of(session: Session, namespace: str, number: int) -> Row:
    rows = session.execute(f"SELECT {COLUMNS} FROM entries WHERE namespace = ? AND number = ?", (namespace, number))
    if not rows:
        raise RegistryError(f"{namespace} has no entry {number}; `list` shows those that it has")
    return rows[0]


def line_of(session: Session, namespace: str, number: int, limit: int) -> dict[int, Row]:
    """Number -> row of an entry and its ancestors, at most `limit`, by their column `parent`: one way to the server."""
    found = session.execute(
        f"WITH RECURSIVE line AS (SELECT {COLUMNS}, parent, 1 AS depth FROM entries WHERE namespace = ? AND number = ? "
        f"UNION ALL SELECT {', '.join(f'e.{name}' for name in COLUMNS.split(', '))}, e.parent, depth + 1 "
        f"FROM entries e JOIN line ON e.number = line.parent WHERE e.namespace = ? AND depth < ?) "
        f"SELECT {COLUMNS} FROM line",
        (namespace, number, namespace, limit),
    )
    return {row[0]: row for row in found}


def standing(session: Session, namespace: str, number: int) -> Standing:
    return read(row_of(session, namespace, number), namespace, names_of(session, namespace))


def read(row: Row, namespace: str, names: Mapping[int, tuple[str, ...]]) -> Standing:
    number, document, sha256, stage, has_weights = row
    checked_row(stage, namespace, number)
    entry = decode_entry(document, sha256, name=f"{namespace}/{number}")
    if (entry.namespace, entry.number) != (namespace, number):
        raise RegistryIntegrityError(f"entry {namespace}/{number} says that it is {entry.id}: rows were exchanged")
    return Standing(entry, stage, names.get(number, ()), bool(has_weights), document)


def checked_row(stage: str, namespace: str, number: int) -> None:
    """Raises `RegistryIntegrityError` for a stage that there is not."""
    if stage not in STAGES:
        raise RegistryIntegrityError(
            f"entry {namespace}/{number} has stage {quoted(stage, 60)}, expected one of {', '.join(STAGES)}: its row "
            f"was changed"
        )


def aliases(session: Session, namespace: str) -> dict[str, int]:
    """Alias -> number of its entry, as the rows say: one that was changed keeps nobody from moving the others."""
    find = "SELECT alias, number FROM aliases WHERE namespace = ? ORDER BY alias"
    return dict(session.execute(find, (namespace,)))


def alias_problems(session: Session, namespace: str) -> dict[str, str]:
    """Alias -> why its row is none; nothing where all name entries."""
    find = (
        "SELECT alias, a.number, e.number FROM aliases a LEFT JOIN entries e "
        "ON e.namespace = a.namespace AND e.number = a.number WHERE a.namespace = ? ORDER BY alias"
    )
    found = {}
    for alias, number, entry in session.execute(find, (namespace,)):
        if not is_name(alias) or entry is None:
            why = "is no name" if entry is not None else f"names entry {number}, which does not exist"
            found[alias] = f"alias {quoted(alias, 60)} of {namespace} {why}: its row was changed; move it, or remove it"
    return found


def read_event(row: Row) -> Event:
    """Of (sequence, namespace, number, kind, body, actor, reason, created_s).

    Raises:
      RegistryIntegrityError: the body is no JSON object.
    """
    sequence, namespace, number, kind, body, *rest = row
    return Event(sequence, namespace, number, kind, _body(body, f"{namespace}/{number}", sequence), *rest)


def _body(text: str, entry: str, sequence: int) -> dict[str, Any]:
    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except msgspec.MsgspecError as error:
        raise RegistryIntegrityError(
            f"event {sequence} of entry {entry} is none: its row was changed ({quoted(str(error), 200)})"
        ) from None


def names_of(session: Session, namespace: str) -> dict[int, tuple[str, ...]]:
    names: dict[int, tuple[str, ...]] = {}
    for alias, number in aliases(session, namespace).items():
        names[number] = (*names.get(number, ()), alias)
    return names


def check_expected(current: Mapping[str, int], expected: Mapping[str, int | None], namespace: str) -> None:
    for alias, number in expected.items():
        if current.get(alias) != number:
            raise RegistryError(
                f"alias {alias} of {namespace} is {current.get(alias, 'not there')}, expected "
                f"{'none' if number is None else number}: somebody moved it; look again, then decide"
            )


def check_servable(standing: Standing, *, unproven: bool) -> None:
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


def point(session: Session, namespace: str, alias: str, number: int | None) -> None:
    if number is None:
        session.execute("DELETE FROM aliases WHERE namespace = ? AND alias = ?", (namespace, alias))
        return
    session.execute(
        "INSERT INTO aliases VALUES (?, ?, ?) ON CONFLICT (namespace, alias) DO UPDATE SET number = excluded.number",
        (namespace, alias, number),
    )


def record_move(
    session: Session, namespace: str, before: Mapping[str, int], wanted: Mapping[str, int | None], by: By
) -> int:
    """Points aliases to their entries, each with a row in the history; returns the number of the move."""
    ((last,),) = session.execute("SELECT coalesce(max(move), 0) FROM moves WHERE namespace = ?", (namespace,))
    for alias, target in sorted(wanted.items()):
        point(session, namespace, alias, target)
        session.execute(
            "INSERT INTO moves (namespace, move, alias, old, new, token, actor, reason, created_s) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (namespace, last + 1, alias, before.get(alias), target, by.token, by.actor, by.reason, by.now_s),
        )
    return last + 1


def set_stage(
    session: Session,
    namespace: str,
    number: int,
    stage: str,
    actor: str,
    reason: str,
    now_s: float,
    *,
    unproven: bool = False,
) -> None:
    """Moves an entry to another stage; out of an unproven one only with the report of a gate that it passed.

    Args:
      unproven: somebody takes the responsibility instead, by `actor` and `reason`; the history says so.

    Raises:
      RegistryError: the stage can't follow, there is no such report, or nobody takes the responsibility.
    """
    old = row_of(session, namespace, number)[3]
    checked_row(old, namespace, number)
    checked_stage(old, stage, name=f"{namespace}/{number}")
    if old in UNPROVEN and stage not in CLOSED and not _has_passed(session, namespace, number):
        _check_responsible(f"{namespace}/{number}", actor, reason, unproven=unproven)
        reason = f"without a gate: {reason}"
    session.execute("UPDATE entries SET stage = ? WHERE namespace = ? AND number = ?", (stage, namespace, number))
    record(session, namespace, number, "stage", {"old": old, "new": stage}, actor, reason, now_s)


def _has_passed(session: Session, namespace: str, number: int) -> bool:
    """Whether the newest report of an entry says so."""
    found = session.execute(
        "SELECT body, sequence FROM events WHERE namespace = ? AND number = ? AND kind = 'report' "
        "ORDER BY sequence DESC LIMIT 1",
        (namespace, number),
    )
    if not found:
        return False
    body, sequence = found[0]
    return _body(body, f"{namespace}/{number}", sequence).get("verdict") == PASSED


def _check_responsible(name: str, actor: str, reason: str, *, unproven: bool) -> None:
    if not unproven:
        raise RegistryError(
            f"no gate has passed entry {name}: run tools.gate on it, or take the responsibility with a name and a "
            f"reason (--unproven)"
        )
    if not actor.strip() or not reason.strip():
        raise RegistryError(
            f"entry {name} is to pass without a gate, by actor {quoted(actor, 60)} for reason {quoted(reason, 60)}: "
            f"expected who takes the responsibility, and why"
        )


def record(
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
