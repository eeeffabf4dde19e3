"""Traffic splits on both engines: set with an alias move or alone, never to a canary that is not there."""

from __future__ import annotations

import pytest

from serving_bridge.database import Schema, open_database
from serving_bridge.registry import (
    REGISTRY,
    NotHolderError,
    RegistryError,
    RegistryIndex,
    TrafficChange,
    TrafficSplit,
)
from tests.support.registries import IndexPlace, index_place, passed_entry

__all__ = ["index_place"]  # a fixture


@pytest.fixture
def index(index_place: IndexPlace) -> RegistryIndex:
    return index_place.open()


def test_a_split_changes_with_the_alias_move_or_neither_does(index: RegistryIndex) -> None:
    old, new = passed_entry(index), passed_entry(index)
    aliases = index.aliases
    lease = aliases.take_lease("default", "canary-1", 60)
    assert aliases.traffic("default") == TrafficSplit("default")
    change = TrafficChange(canary_share=0.05, shadow_share=0.5, tenants=("beta", "acme", "beta"))
    aliases.move(lease, {"stable": old, "canary": new}, actor="ann", reason="step 1", traffic=change)
    placed = aliases.placement("default")
    assert placed.traffic == TrafficSplit("default", 0.05, 0.5, ("acme", "beta"), 1)
    assert placed.stable is not None
    assert placed.canary is not None
    assert (placed.stable.number, placed.canary.weight_version, placed.canary.content) == (old, new, "ab" * 32)
    with pytest.raises(RegistryError, match="expected 7: somebody moved it"):
        aliases.move(
            lease, {"canary": old}, actor="ann", reason="x", expected={"stable": 7}, traffic=TrafficChange(0.5)
        )
    assert aliases.placement("default") == placed
    assert aliases.set_traffic(lease, TrafficChange(0.25), actor="bob", reason="step 2").revision == 2
    assert [(r.split.canary_share, r.move, r.actor, r.reason) for r in aliases.traffic_history("default")] == [
        (0.25, None, "bob", "step 2"),
        (0.05, 1, "ann", "step 1"),
    ]
    assert {r.token for r in aliases.traffic_history("default")} == {lease.token}
    assert aliases.traffic("acme") == TrafficSplit("acme"), "each namespace has its own"


@pytest.mark.parametrize("target", [None, 3])
def test_a_canary_that_goes_or_changes_leaves_without_its_traffic(index: RegistryIndex, target: int | None) -> None:
    entries = [passed_entry(index) for _ in range(3)]
    aliases = index.aliases
    lease = aliases.take_lease("default", "ann", 60)
    start = {"stable": entries[0], "canary": entries[1]}
    aliases.move(lease, start, actor="ann", reason="x", traffic=TrafficChange(0.5, 0.1))
    aliases.move(lease, {"previous": entries[0], "canary": entries[1]}, actor="ann", reason="no change of the canary")
    assert aliases.traffic("default").canary_share == 0.5
    aliases.move(lease, {"canary": target}, actor="ann", reason="worse")
    assert aliases.traffic("default") == TrafficSplit("default", revision=2)
    newest = aliases.traffic_history("default")[0]
    assert (newest.move, newest.reason) == (3, "worse")
    aliases.move(lease, {"canary": None}, actor="ann", reason="nothing to take back")
    assert aliases.traffic("default").revision == 2


def test_no_traffic_goes_to_a_canary_that_is_not_there_or_was_rolled_back(index: RegistryIndex) -> None:
    stable, canary = passed_entry(index), passed_entry(index)
    aliases = index.aliases
    lease = aliases.take_lease("default", "ann", 60)
    aliases.move(lease, {"stable": stable}, actor="ann", reason="first")
    for change in (TrafficChange(0.01), TrafficChange(shadow_share=1.0)):
        with pytest.raises(RegistryError, match="default has no alias canary, and the split gives it"):
            aliases.set_traffic(lease, change, actor="ann", reason="x")
        with pytest.raises(RegistryError, match="no alias canary"):
            aliases.move(lease, {"previous": stable}, actor="ann", reason="x", traffic=change)
    assert aliases.current("default") == {"stable": stable}
    aliases.move(lease, {"canary": canary}, actor="ann", reason="x", stages={canary: "canary"})
    index.set_stage("default", canary, "rolled_back", actor="gate", reason="toxic")
    with pytest.raises(RegistryError, match="is rolled_back"):
        aliases.set_traffic(lease, TrafficChange(0.01), actor="ann", reason="x")
    with pytest.raises(RegistryError, match="needs a reason"):
        aliases.set_traffic(lease, TrafficChange(), actor="ann", reason=" ")
    assert aliases.traffic("default").revision == 0


def test_a_holder_who_was_overtaken_sets_no_traffic(index_place: IndexPlace) -> None:
    slow, quick = index_place.open(), index_place.open()
    number = passed_entry(slow)
    lease = slow.aliases.take_lease("default", "slow", 10)
    slow.aliases.move(lease, {"canary": number}, actor="slow", reason="x", traffic=TrafficChange(0.5))
    newer = quick.aliases.take_lease("default", "quick", 10, by_force=True)
    quick.aliases.set_traffic(newer, TrafficChange(), actor="quick", reason="roll back")
    with pytest.raises(NotHolderError, match="nothing was moved"):
        slow.aliases.set_traffic(lease, TrafficChange(1.0), actor="slow", reason="late")
    assert quick.aliases.traffic("default").canary_share == 0


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"canary_share": 1.01}, "canary_share is 1.01, expected 0 to 1"),
        ({"canary_share": -0.1}, "canary_share"),
        ({"shadow_share": float("nan")}, "shadow_share is nan"),
        ({"canary_share": True}, "canary_share is True"),
        ({"canary_share": 0.1, "tenants": ("a\x1b[31m",)}, "tenants: .*expected at most 10000 names"),
        ({"canary_share": 0.1, "tenants": ("../x",)}, "tenants"),
        ({"canary_share": 0.1, "tenants": ("",)}, "tenants"),
        ({"canary_share": 0.1, "tenants": tuple(map(str, range(10_001)))}, "10001"),
        ({"tenants": ("acme",)}, "canary_share is 0"),
    ],
    ids=["above", "below", "nan", "bool", "escape", "path", "empty", "many", "tenants-without-share"],
)
def test_a_change_that_is_none_is_refused(arguments: dict[str, object], match: str) -> None:
    with pytest.raises(RegistryError, match=match) as refused:
        TrafficChange(**arguments)  # type: ignore[arg-type]
    assert "\x1b" not in str(refused.value)


def test_a_database_from_before_splits_opens_with_everything_on_stable(database_url: str) -> None:
    before = Schema("registry", REGISTRY.migrations[:1])
    old = open_database(database_url, schema=before)
    old.write(lambda session: session.execute("INSERT INTO aliases VALUES ('default', 'canary', 1)"))
    old.close()
    database = open_database(database_url, schema=REGISTRY)
    try:
        index = RegistryIndex(database, clock=lambda: 1.0)
        assert index.aliases.traffic("default") == TrafficSplit("default")
        assert index.aliases.current("default") == {"canary": 1}
    finally:
        database.close()


def test_a_changed_row_is_no_split(index_place: IndexPlace) -> None:
    index = index_place.open()
    number = passed_entry(index)
    lease = index.aliases.take_lease("default", "ann", 60)
    index.aliases.move(lease, {"canary": number}, actor="ann", reason="x", traffic=TrafficChange(0.5))
    for statement in ("UPDATE traffic SET canary_share = 7", "UPDATE traffic SET tenants = '{'"):
        index._db.write(lambda session, statement=statement: session.execute(statement))  # type: ignore[misc]
        with pytest.raises(RegistryError, match="traffic split 1 of default is none"):
            index.aliases.traffic("default")
        index._db.write(lambda session: session.execute("UPDATE traffic SET canary_share = 0.5"))
