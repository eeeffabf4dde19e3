"""Entries and aliases on both engines: append-only, one holder moves, all aliases of a move or none."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from serving_bridge.registry import NotHolderError, RegistryError, RegistryIndex, RegistryIntegrityError
from serving_bridge.registry.entry import STAGES
from tests.support.registries import IndexPlace, add_entry, index_place, passed_entry

__all__ = ["index_place"]  # a fixture


@pytest.fixture
def index(index_place: IndexPlace) -> RegistryIndex:
    return index_place.open()


def test_entries_are_numbered_in_their_namespace_and_chained(index: RegistryIndex) -> None:
    assert [add_entry(index) for _ in range(3)] == [1, 2, 3]
    assert add_entry(index, "acme") == 1
    entries = [standing.entry for standing in index.entries("default")]
    assert [entry.number for entry in entries] == [3, 2, 1]
    assert entries[-1].previous == ""
    assert len({entry.previous for entry in entries}) == 3
    assert index.check_chain("default") == [] == index.check_chain("acme")
    assert [s.entry.number for s in index.entries("default", limit=1, before=3)] == [2]
    assert index.entries("default", stage="passed") == []


def test_lineage_goes_up_to_the_first_and_children_come_back(index: RegistryIndex) -> None:
    first = add_entry(index)
    second, other = add_entry(index, parent=first), add_entry(index, parent=first)
    third = add_entry(index, parent=second)
    assert [standing.entry.number for standing in index.lineage("default", third)] == [third, second, first]
    assert [standing.entry.number for standing in index.lineage("default", third, limit=2)] == [third, second]
    assert index.children("default", first) == [second, other]
    with pytest.raises(RegistryError, match="default has no entry 9"):
        add_entry(index, parent=9)
    assert len(index.entries("default")) == 4, "nothing was added"


def test_aliases_move_together_or_not_at_all(index: RegistryIndex) -> None:
    old, new = passed_entry(index), passed_entry(index)
    lease = index.aliases.take_lease("default", "ann", 60)
    assert index.aliases.move(lease, {"stable": old}, actor="ann", reason="first") == 1
    move = index.aliases.move(
        lease, {"stable": new, "previous": old, "canary": None}, actor="ann", reason="better", expected={"stable": old}
    )
    assert (move, index.aliases.current("default")) == (2, {"stable": new, "previous": old})
    assert index.standing("default", new).aliases == ("stable",)
    with pytest.raises(RegistryError, match="alias stable of default is 2, expected 1: somebody moved it"):
        index.aliases.move(lease, {"stable": old}, actor="ann", reason="late", expected={"stable": old})
    with pytest.raises(RegistryError, match="default has no entry 7"):
        index.aliases.move(lease, {"previous": new, "stable": 7}, actor="ann", reason="typo")
    assert index.aliases.current("default") == {"stable": new, "previous": old}, "not even in part"
    assert [(m.move, m.alias, m.old, m.new) for m in index.aliases.history("default")] == [
        (2, "stable", old, new),
        (2, "previous", None, old),
        (2, "canary", None, None),
        (1, "stable", None, old),
    ]
    assert {m.alias for m in index.aliases.history("default", alias="stable")} == {"stable"}
    assert index.aliases.resolve("default", "stable") == new
    assert index.aliases.resolve("default", "1") == 1
    with pytest.raises(RegistryError, match="has no alias 'canary'|has no alias canary; it has previous, stable"):
        index.aliases.resolve("default", "canary")


def test_nothing_unproven_rejected_or_without_weights_is_moved_to(index: RegistryIndex) -> None:
    number = add_entry(index)
    lease = index.aliases.take_lease("default", "ann", 60)
    with pytest.raises(RegistryError, match="candidate that no evaluation gate has passed"):
        index.aliases.move(lease, {"stable": number}, actor="ann", reason="hurry")
    index.aliases.move(lease, {"stable": number}, actor="ann", reason="an outage; ann answers for it", unproven=True)
    bad = passed_entry(index)
    index.set_stage("default", bad, "rejected", actor="gate", reason="toxic")
    with pytest.raises(RegistryError, match="is rejected"):
        index.aliases.move(lease, {"stable": bad}, actor="ann", reason="x", unproven=True)
    gone = passed_entry(index)
    assert index.forget_weights("default", [number, gone], actor="ann", reason="disk") == [gone], (
        "an alias names the other"
    )
    with pytest.raises(RegistryError, match="weights of entry default/3 were removed"):
        index.aliases.move(lease, {"stable": gone}, actor="ann", reason="x")
    with pytest.raises(RegistryError, match="reason"):
        index.aliases.move(lease, {"stable": number}, actor="ann", reason=" ")
    assert index.aliases.current("default") == {"stable": number}


def test_a_holder_who_was_overtaken_moves_nothing(index_place: IndexPlace) -> None:
    slow, quick = index_place.open(), index_place.open()
    number = passed_entry(slow)
    lease = slow.aliases.take_lease("default", "slow", 10)
    with pytest.raises(NotHolderError, match="slow holds the aliases of default for up to 10 s more"):
        quick.aliases.take_lease("default", "quick", 10)
    index_place.clock.now_s += 11
    assert slow.aliases.move(lease, {"stable": number}, actor="slow", reason="late, but nobody else came") == 1
    newer = quick.aliases.take_lease("default", "quick", 10)
    index_place.clock.now_s -= 100  # a clock that jumps back changes nothing: the token counts
    with pytest.raises(NotHolderError, match="nothing was moved"):
        slow.aliases.move(lease, {"stable": None}, actor="slow", reason="x")
    assert quick.aliases.move(newer, {"canary": number}, actor="quick", reason="y") == 2
    assert quick.aliases.current("default") == {"stable": number, "canary": number}
    slow.aliases.release_lease(lease)  # not its own any more
    assert (found := quick.aliases.holder("default")) is not None
    assert found.holder == "quick"
    forced = slow.aliases.take_lease("default", "person", 10, by_force=True)
    with pytest.raises(NotHolderError):
        quick.aliases.move(newer, {"canary": None}, actor="quick", reason="z")
    slow.aliases.release_lease(forced)
    assert slow.aliases.holder("default") is None
    again = quick.aliases.take_lease("default", "person", 10)
    assert again.token > forced.token, "a lease that was given back is not the same when it is taken again"


def test_of_many_who_expect_the_same_one_wins(index_place: IndexPlace) -> None:
    index = index_place.open()
    numbers = [passed_entry(index) for _ in range(5)]
    lease = index.aliases.take_lease("default", "all", 60)

    def work(number: int) -> bool:
        try:
            aliases = index_place.open().aliases
            aliases.move(lease, {"stable": number}, actor="all", reason="race", expected={"stable": None})
        except RegistryError:
            return False
        return True

    with ThreadPoolExecutor(5) as pool:
        won = list(pool.map(work, numbers))
    assert won.count(True) == 1
    assert index.aliases.current("default") == {"stable": numbers[won.index(True)]}
    assert len(index.aliases.history("default")) == 1


def test_entries_added_at_once_get_numbers_of_their_own(index_place: IndexPlace) -> None:
    with ThreadPoolExecutor(5) as pool:
        numbers = list(pool.map(lambda _: add_entry(index_place.open()), range(5)))
    assert sorted(numbers) == [1, 2, 3, 4, 5]
    assert index_place.open().check_chain("default") == []


def test_a_candidate_passes_by_its_newest_report_or_by_somebody_who_is_named(index: RegistryIndex) -> None:
    number, other, third = (add_entry(index) for _ in range(3))
    pass_it = {"actor": "gate", "reason": "all suites"}
    lease = index.aliases.take_lease("default", "ann", 60)
    for verdict in ("", "failed", "passed", "failed"):
        if verdict:
            index.add_report("default", number, {"verdict": verdict}, actor="gate")
        if verdict == "passed":
            continue
        with pytest.raises(RegistryError, match=f"no gate has passed entry default/{number}: run tools.gate"):
            index.set_stage("default", number, "passed", **pass_it)
        with pytest.raises(RegistryError, match="no gate has passed entry"):
            index.aliases.move(lease, {"stable": number}, actor="x", reason="y", stages={number: "passed"})
    assert (index.standing("default", number).stage, index.aliases.current("default")) == ("candidate", {})
    index.add_report("default", number, {"verdict": "passed"}, actor="gate")
    with pytest.raises(RegistryError, match="no gate has passed entry default/2"):
        index.set_stage("default", other, "passed", **pass_it)  # the report of another entry
    index.set_stage("default", number, "passed", **pass_it)
    for actor, reason in (("", "fine"), ("ann", " ")):
        with pytest.raises(RegistryError, match="expected who takes the responsibility, and why"):
            index.set_stage("default", other, "passed", actor=actor, reason=reason, unproven=True)
    index.set_stage("default", other, "passed", actor="ann", reason="fine", unproven=True)
    stages = {third: "passed"}
    index.aliases.move(lease, {"stable": third}, actor="ann", reason="first", stages=stages, unproven=True)
    last = [index.events("default", one)[-1] for one in (number, other, third)]
    assert [(event.body["new"], event.actor, event.reason) for event in last] == [
        ("passed", "gate", "all suites"),
        ("passed", "ann", "without a gate: fine"),
        ("passed", "ann", "without a gate: first"),
    ]
    rejected = add_entry(index)
    index.set_stage("default", rejected, "rejected", actor="gate", reason="toxic")  # needs no report


def test_stages_follow_each_other_and_leave_a_trace(index: RegistryIndex) -> None:
    number = passed_entry(index)
    with pytest.raises(RegistryError, match="is passed and can't become retired; expected canary, rejected"):
        index.set_stage("default", number, "retired", actor="x", reason="y")
    with pytest.raises(RegistryError, match="expected one of candidate, passed"):
        index.set_stage("default", number, "best", actor="x", reason="y")
    index.set_stage("default", number, "canary", actor="controller", reason="5%")
    index.set_stage("default", number, "rolled_back", actor="controller", reason="errors up")
    index.add_report("default", number, {"verdict": "failed"}, actor="gate")
    events = [(event.kind, event.body, event.actor) for event in index.events("default", number)]
    assert events == [
        ("registered", {}, "ann"),
        ("stage", {"old": "candidate", "new": "passed"}, "ann"),
        ("stage", {"old": "passed", "new": "canary"}, "controller"),
        ("stage", {"old": "canary", "new": "rolled_back"}, "controller"),
        ("report", {"verdict": "failed"}, "gate"),
    ]
    with pytest.raises(RegistryError, match="expected no other: register the weights again"):
        index.set_stage("default", number, "canary", actor="x", reason="y")
    assert all(after in STAGES for stages in STAGES.values() for after in stages)


@pytest.mark.parametrize(
    ("statement", "match"),
    [
        ("UPDATE entries SET document = replace(document, 'ann', 'eve') WHERE number = 2", "row was changed"),
        ("DELETE FROM entries WHERE number = 2", "a row is gone"),
        ("UPDATE entries SET content = 'x' WHERE number = 2", "its columns say"),
    ],
)
def test_changed_rows_are_found(index: RegistryIndex, statement: str, match: str) -> None:
    for _ in range(3):
        add_entry(index)
    index._db.write(lambda session: session.execute(statement))
    assert any(match in problem for problem in index.check_chain("default"))


def test_a_changed_row_is_never_served(index: RegistryIndex) -> None:
    number = passed_entry(index)
    index._db.write(lambda session: session.execute("UPDATE entries SET document = replace(document, 'ann', 'eve')"))
    lease = index.aliases.take_lease("default", "ann", 60)
    with pytest.raises(RegistryIntegrityError, match=r"entry default/1 has sha256 .* expected .* its row was changed"):
        index.aliases.move(lease, {"stable": number}, actor="ann", reason="x")


@pytest.mark.parametrize("name", ["", "A", "a b", "../x", "a" * 41, "-a", "a\n"])
def test_names_that_are_none_are_refused(index: RegistryIndex, name: str) -> None:
    with pytest.raises(RegistryError, match="expected"):
        index.entries(name)
    with pytest.raises(RegistryError, match="expected"):
        add_entry(index, name)
    lease = index.aliases.take_lease("default", "ann", 60)
    with pytest.raises(RegistryError, match="expected"):
        index.aliases.move(lease, {name: None}, actor="ann", reason="x")
