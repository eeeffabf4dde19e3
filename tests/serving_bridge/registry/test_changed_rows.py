"""Rows that somebody edited by hand: one clear error each, and what does not need them goes on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from serving_bridge.registry import RegistryIndex, RegistryIntegrityError, TrafficChange
from tests.support.registries import IndexPlace, add_entry, index_place, passed_entry

__all__ = ["index_place"]  # a fixture

Reader = Callable[[RegistryIndex], Any]


@pytest.fixture
def index(index_place: IndexPlace) -> RegistryIndex:
    """Two entries; stable is the first, canary the second with a tenth of the traffic."""
    found = index_place.open()
    for _ in range(2):
        passed_entry(found)
    lease = found.aliases.take_lease("default", "ann", 60)
    found.aliases.move(lease, {"stable": 1}, actor="ann", reason="x")
    found.aliases.move(lease, {"canary": 2}, actor="ann", reason="x", traffic=TrafficChange(0.1))
    found.aliases.release_lease(lease)
    return found


def _edit(index: RegistryIndex, statement: str) -> None:
    index._db.write(lambda session: session.execute(statement))


READERS: dict[str, Reader] = {
    "standing": lambda index: index.standing("default", 2),
    "entries": lambda index: index.entries("default"),
    "lineage": lambda index: index.lineage("default", 2),
    "events": lambda index: index.events("default", 2),
    "stage": lambda index: index.set_stage("default", 2, "canary", actor="ann", reason="x"),
    "resolve": lambda index: index.aliases.resolve("default", "canary"),
    "placement": lambda index: index.aliases.placement("default"),
    "traffic": lambda index: index.aliases.traffic("default"),
    "changes": lambda index: index.aliases.traffic_history("default"),
}
STAGE = "UPDATE entries SET stage = 'loved' WHERE number = 2"
DOCUMENT = "UPDATE entries SET document = '{' WHERE number = 2"
BODY = "UPDATE events SET body = '[1' WHERE number = 2"
ALIAS = "UPDATE aliases SET number = 9 WHERE alias = 'canary'"
TENANTS = "UPDATE {table} SET tenants = '{{\"a\": 1}}'"
SHARE = "UPDATE {table} SET canary_share = 3"


@pytest.mark.parametrize(
    ("statement", "reader", "said"),
    [
        *(
            (STAGE, reader, "default/2 has stage loved, expected one of candidate")
            for reader in ("standing", "entries")
        ),
        *(
            (STAGE, reader, "default/2 has stage loved, expected one of")
            for reader in ("lineage", "stage", "placement")
        ),
        *(
            (DOCUMENT, reader, "default/2 has sha256 .* row was changed")
            for reader in ("standing", "entries", "lineage")
        ),
        (BODY, "events", "event .* of entry default/2 is none: its row was changed"),
        *((ALIAS, reader, "alias canary of default names entry 9, which does") for reader in ("resolve", "placement")),
        *(
            (TENANTS.format(table="traffic"), reader, "split 1 of default is none")
            for reader in ("traffic", "placement")
        ),
        (SHARE.format(table="traffic"), "traffic", "split 1 of default is none: .*canary_share is 3"),
        (SHARE.format(table="traffic_changes"), "changes", "split 1 of default is none: .*canary_share is 3"),
    ],
)
def test_a_changed_row_is_one_clear_error(index: RegistryIndex, statement: str, reader: str, said: str) -> None:
    if reader != "stage":
        READERS[reader](index)
    _edit(index, statement)
    with pytest.raises(RegistryIntegrityError, match=said):
        READERS[reader](index)


def test_a_circle_of_parents_ends_and_the_documents_count(index: RegistryIndex) -> None:
    child = add_entry(index, parent=2)
    _edit(index, f"UPDATE entries SET parent = {child} WHERE number = 2")
    assert [standing.entry.number for standing in index.lineage("default", child)] == [child, 2]
    (problem,) = index.check_chain("default")
    assert "default/2: its columns say" in problem


def test_verify_names_every_one(index: RegistryIndex) -> None:
    assert index.check_chain("default") == []
    _edit(index, STAGE)
    _edit(index, ALIAS)
    alias, stage = index.check_chain("default")
    assert "names entry 9" in alias
    assert "has stage loved" in stage


def test_a_report_that_was_changed_lets_nobody_pass(index: RegistryIndex) -> None:
    _edit(index, "UPDATE entries SET stage = 'candidate' WHERE number = 2")
    index.add_report("default", 2, {"verdict": "passed"}, actor="gate")
    _edit(index, "UPDATE events SET body = 'passed' WHERE kind = 'report'")
    with pytest.raises(RegistryIntegrityError, match="event .* of entry default/2 is none"):
        index.set_stage("default", 2, "passed", actor="ann", reason="x")


def test_an_alias_of_no_entry_keeps_nobody_from_rolling_back(index: RegistryIndex) -> None:
    _edit(index, "INSERT INTO aliases VALUES ('default', 'experiment', 77)")
    assert index.aliases.placement("default").canary is not None
    lease = index.aliases.take_lease("default", "ann", 60)
    index.aliases.move(lease, {"canary": None}, actor="ann", reason="worse")
    index.aliases.move(lease, {"experiment": None}, actor="ann", reason="repaired")
    assert index.check_chain("default") == []
