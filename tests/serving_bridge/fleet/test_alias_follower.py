"""A fleet that follows a registry's aliases, in virtual time: swaps, rollback, what can't be served, a lost index."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import pytest

from serving_bridge.database import DatabaseError
from serving_bridge.fleet.alias_follower import AliasFollower, Served
from serving_bridge.registry import Registry, RegistryError, TrafficChange, read_trusted_keys
from serving_bridge.registry.kept_files import tokenizer_sha256
from serving_bridge.routing import LEAVING
from tests.support.registries import FILES, candidate, published
from tests.support.signing_keys import private_key, public_of
from tests.support.stub_fleet import SLACK_S, StubFleet
from tests.support.virtual_time import inline
from tests.support.virtual_time import run as virtually

SERVED = Served({"model.embed_tokens.weight": (8, 4), "model.norm.weight": (4,)}, "bfloat16", tokenizer_sha256(FILES))
STARTED_S = 10.0


@dataclass
class Place:
    """A registry with entries 1, 2 and 3, whose weights have these versions, too; `stable` is 1."""

    registry: Registry
    folder: Path

    def add(self, seed: int, *, files: dict[str, bytes] = FILES, rows: int = 8, dtype: Any = ml_dtypes.bfloat16) -> int:
        store, version = published(self.folder / f"run-{seed}", seed, rows=rows, norm_dtype=dtype)
        number = self.registry.register("default", store, version, files, candidate(), actor="ann").number
        self.registry.index.set_stage("default", number, "passed", actor="ann", reason="x", unproven=True)
        return number

    def move(self, canary_share: float | None = None, **aliases: int | None) -> None:
        traffic = None if canary_share is None else TrafficChange(canary_share)
        self.registry.move("default", aliases, holder="ann", actor="ann", reason="x", traffic=traffic)

    def follower(self, log: Callable[..., None]) -> AliasFollower:
        return AliasFollower(self.registry, "default", SERVED, log=log, run_blocking=inline)

    def fleet(self, **settings: Any) -> StubFleet:
        return StubFleet(self.folder / "fleet", make_follower=self.follower, follow="aliases", **settings)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    found = Place(Registry(tmp_path / "registry"), tmp_path)
    for seed in (1, 2, 3):
        found.add(seed)
    found.move(stable=1)
    yield found
    found.registry.close()


def arms(fleet: StubFleet) -> dict[str, tuple[str, int]]:
    """What the rows say: replica -> (arm, version)."""
    return {row.name: (row.arm, row.version) for row in fleet.registry.replicas()}


async def until(fleet: StubFleet, expected: list[tuple[str, int]], within_s: float = 20.0) -> float:
    """Until the arms and versions are these, in the order of the replicas' names."""
    return await fleet.until(lambda: [arms(fleet)[name] for name in sorted(arms(fleet))] == expected, within_s)


def test_a_canary_comes_takes_its_share_and_goes_again(place: Place) -> None:
    async def test() -> None:
        async with place.fleet(replicas=3, min_healthy=1).running() as fleet:
            await fleet.until_healthy("host-0", "host-1", "host-2", within_s=STARTED_S)
            await until(fleet, [("stable", 1)] * 3)
            place.move(0.05, canary=2)
            await until(fleet, [("stable", 1), ("stable", 1), ("canary", 2)])
            place.move(0.5, canary=2)
            await fleet.until(lambda: any(e.get("canary_share") == 0.5 for e in fleet.named("aliases")), 5)
            asked = {name: list(server.asked) for name, server in fleet.servers.items()}
            place.move(stable=2, canary=None, previous=1)
            await until(fleet, [("stable", 2)] * 3)
            assert fleet.servers["host-2"].asked == asked["host-2"], "who served it already was not swapped"
            place.move(stable=1)
            await until(fleet, [("stable", 1)] * 3)
            assert [server.asked[-1] for server in fleet.servers.values()] == [1, 1, 1]

    virtually(test())


def test_replicas_are_swapped_one_at_a_time_and_without_answers(place: Place) -> None:
    rows_seen: list[dict[str, tuple[str, int]]] = []

    async def test() -> None:
        async with place.fleet(replicas=3, min_healthy=1).running() as fleet:
            await until(fleet, [("stable", 1)] * 3)
            for server in fleet.servers.values():
                server.in_flight_s = 3.0
            place.move(stable=2)

            def done() -> bool:
                rows_seen.append(arms(fleet))
                return all(row == ("stable", 2) for row in arms(fleet).values())

            await fleet.until(done, 40)
            for server in fleet.servers.values():
                (drained_s,) = server.did("drain")
                assert server.asked == [1, 2]
                leaving = [fleet_row for fleet_row in rows_seen if fleet_row[server.name][0] == LEAVING]
                assert len(leaving) * 0.05 >= 3.5, "it took requests while it ended those that it had"
                assert drained_s > 0

    virtually(test())
    assert max(sum(arm == LEAVING for arm, _ in rows.values()) for rows in rows_seen) == 1


def test_a_lone_replica_serves_stable_alone_and_is_swapped_where_it_stands(place: Place) -> None:
    async def test() -> None:
        async with place.fleet(replicas=1, min_healthy=1).running() as fleet:
            await until(fleet, [("stable", 1)])
            place.move(0.5, canary=2)
            await fleet.until(lambda: any(e.get("canary_share") == 0.5 for e in fleet.named("aliases")), 5)
            assert arms(fleet) == {"host-0": ("stable", 1)}
            place.move(stable=2, canary=None)
            await until(fleet, [("stable", 2)], within_s=2.0)
            assert not fleet.servers["host-0"].did("drain"), "there was nobody to take its requests"

    virtually(test())


@pytest.mark.parametrize("what", ["tokenizer", "shape", "dtype", "damage"])
def test_a_canary_that_does_not_fit_is_named_and_serves_nobody(place: Place, what: str) -> None:
    given: dict[str, Any] = {
        "tokenizer": {"files": FILES | {"tokenizer.json": b'{"version": "2.0"}'}},
        "shape": {"rows": 9},
        "dtype": {"dtype": "float32"},
        "damage": {},
    }[what]
    number = place.add(9, **given)
    expected = {
        "tokenizer": "has tokenizer",
        "shape": r"1 tensors, e.g. model.embed_tokens.weight is \(9, 4\), expected \(8, 4\)",
        "dtype": "is of float32, and this fleet serves bfloat16",
        "damage": f"weights of entry default/{number}: not a weight manifest",
    }[what]

    async def test() -> None:
        async with place.fleet(replicas=2, min_healthy=1).running() as fleet:
            await until(fleet, [("stable", 1)] * 2)
            place.move(0.5, canary=number)
            if what == "damage":
                manifest = place.registry.weights.store("default").folder(number) / "manifest.json"
                manifest.write_bytes(manifest.read_bytes()[:-9])
            await fleet.until(lambda: fleet.named("arm_refused"), 5)
            await fleet.until(lambda: fleet.time() > 30, 40)
            assert arms(fleet) == {"host-0": ("stable", 1), "host-1": ("stable", 1)}
            (refused,) = fleet.named("arm_refused")
            assert refused["arm"] == "canary"
            assert re.search(expected, refused["error"]), refused["error"]
            place.move(canary=None)
            await fleet.until(lambda: fleet.named("aliases")[-1]["canary"] is None, 5)
            if what != "damage":  # which a move finds itself
                place.move(0.5, canary=number)
                await fleet.until(lambda: len(fleet.named("arm_refused")) == 2, 5)
            place.move(0.5, canary=3)
            await until(fleet, [("stable", 1), ("canary", 3)])

    virtually(test())


def test_what_no_trusted_key_signed_is_named_and_serves_nobody_until_it_is_signed(place: Place) -> None:
    key = private_key(place.folder / "ann.pem")
    unsigned = place.registry.index.standing("default", 2)
    place.registry.sign(place.registry.index.standing("default", 1), key, actor="ann")
    demanding = Registry(place.registry.root, trusted=read_trusted_keys(public_of(key)))

    def follower(log: Callable[..., None]) -> AliasFollower:
        return AliasFollower(demanding, "default", SERVED, log=log, run_blocking=inline)

    async def test() -> None:
        fleet = StubFleet(place.folder / "fleet", make_follower=follower, follow="aliases", replicas=2, min_healthy=1)
        async with fleet.running():
            await until(fleet, [("stable", 1)] * 2)
            place.move(0.5, canary=2)  # by somebody who demands nothing
            await fleet.until(lambda: fleet.named("arm_refused"), 5)
            await fleet.until(lambda: fleet.time() > 30, 40)
            assert arms(fleet) == {"host-0": ("stable", 1), "host-1": ("stable", 1)}
            (refused,) = fleet.named("arm_refused")
            assert "default/2: it has no signature" in refused["error"]
            demanding.sign(unsigned, key, actor="ann")
            await until(fleet, [("stable", 1), ("canary", 2)])

    virtually(test())
    demanding.close()


def test_two_fleets_serve_models_of_different_shapes_out_of_one_registry(place: Place) -> None:
    """Each namespace has one shape and one fleet; what gets into the wrong namespace is refused by name."""
    wide = Served({**SERVED.shapes, "model.embed_tokens.weight": (9, 4)}, SERVED.dtype, SERVED.tokenizer)

    def register(namespace: str, seed: int, rows: int) -> int:
        store, version = published(place.folder / f"{namespace}-{seed}", seed, rows=rows, norm_dtype=ml_dtypes.bfloat16)
        number = place.registry.register(namespace, store, version, FILES, candidate(), actor="ann").number
        place.registry.index.set_stage(namespace, number, "passed", actor="ann", reason="x", unproven=True)
        return number

    def moved(**aliases: int) -> None:
        place.registry.move("wide", aliases, holder="ann", actor="ann", reason="x", traffic=TrafficChange(0.5))

    def follower(log: Callable[..., None]) -> AliasFollower:
        return AliasFollower(place.registry, "wide", wide, log=log, run_blocking=inline)

    first, second, narrow = register("wide", 11, 9), register("wide", 12, 9), register("wide", 13, 8)
    moved(stable=first, canary=second)
    settings: dict[str, Any] = {"replicas": 2, "min_healthy": 1, "follow": "aliases"}
    other = StubFleet(place.folder / "wide-fleet", make_follower=follower, **settings)

    async def test() -> None:
        async with place.fleet(replicas=2, min_healthy=1).running() as fleet, other.running():
            await until(other, [("stable", first), ("canary", second)])
            await until(fleet, [("stable", 1)] * 2)
            place.move(0.5, canary=2)
            await until(fleet, [("stable", 1), ("canary", 2)])
            assert [arms(other)[name] for name in sorted(arms(other))] == [("stable", first), ("canary", second)]
            moved(canary=narrow)
            await other.until(lambda: other.named("arm_refused"), 5)
            (refused,) = other.named("arm_refused")
            assert (
                f"entry wide/{narrow} has another shape than this fleet's model folder: 1 tensors" in refused["error"]
            )

    virtually(test())
    store, version = published(place.folder / "child", 14, rows=8, norm_dtype=ml_dtypes.bfloat16)
    with pytest.raises(RegistryError, match="another shape than their parent wide/1"):
        place.registry.register("wide", store, version, FILES, candidate(parent=1), actor="ann")


def test_an_index_that_is_away_changes_nothing(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        async with place.fleet(replicas=2, min_healthy=1).running() as fleet:
            await until(fleet, [("stable", 1)] * 2)
            place.move(0.5, canary=2)
            await until(fleet, [("stable", 1), ("canary", 2)])

            def away(namespace: str) -> Any:
                raise DatabaseError("the server is away")

            monkeypatch.setattr(place.registry, "placement", away)
            await fleet.until(lambda: fleet.named("aliases_unread"), 5)
            fleet.servers["host-1"].status = 1
            await fleet.until(lambda: fleet.states()["host-1"] == "dead", 5)
            await until(fleet, [("stable", 1), ("canary", 2)], within_s=30)
            assert len(fleet.named("aliases_unread")) == 1
            monkeypatch.undo()
            place.move(canary=None)
            await until(fleet, [("stable", 1)] * 2)

    virtually(test())


def test_nothing_to_serve_is_said_before_a_server_is_started(place: Place) -> None:
    place.follower(lambda *_, **__: None).require_stable()
    place.move(stable=place.add(9, rows=9))
    with pytest.raises(RegistryError, match="another shape than this fleet's model folder"):
        place.follower(lambda *_, **__: None).require_stable()
    place.move(stable=None)
    with pytest.raises(RegistryError, match="namespace default has no alias stable"):
        place.follower(lambda *_, **__: None).require_stable()


def test_a_round_that_fails_is_tried_again_and_the_old_arm_goes_on(place: Place) -> None:
    async def test() -> None:
        async with place.fleet(replicas=2, min_healthy=1).running() as fleet:
            await until(fleet, [("stable", 1)] * 2)
            fleet.servers["host-1"].outcomes = ["rejected"]
            place.move(0.5, canary=2)
            await fleet.until(lambda: len(fleet.servers["host-1"].asked) == 2, 10)
            await until(fleet, [("stable", 1), ("canary", 2)], within_s=10 + SLACK_S)
            assert fleet.servers["host-1"].asked == [1, 2, 2]

    virtually(test())
