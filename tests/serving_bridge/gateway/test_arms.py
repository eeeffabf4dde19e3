"""Arms: who gets which, which replica answers, what the answer says of it, and what observers are told."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serving_bridge.gateway import Observation, Split
from serving_bridge.gateway.arms import Arms
from serving_bridge.registry import Cohort, RegistryError
from serving_bridge.routing import LEAVING, ReplicaRow
from serving_bridge.text import Tokenizer
from tests.support.gateway_world import Script, World, report, running_gateway
from tests.support.session_world import tokenizer

__all__ = ["tokenizer"]

SPLIT = Split(stable=3, canary=4, canary_share=0.5, salt="7")


@dataclass
class Seen:
    """Observations with their texts."""

    found: list[tuple[Observation, Sequence[str]]] = field(default_factory=list)
    fails: bool = False

    def answered(self, seen: Observation, texts: Callable[[], Sequence[str]]) -> None:
        self.found.append((seen, texts()))
        if self.fails:
            raise RuntimeError("an observer's own fault")


def row(version: int, state: str = "healthy", arm: str = "") -> ReplicaRow:
    return ReplicaRow("r", "http://10.0.0.1:1", state, version, 0, 0.0, arm=arm)


def dealt(split: Split, number: int = 4000, tenant: str = "") -> np.ndarray:
    arms = Arms(split)
    return np.array([arms.of(f"{i}", tenant) == "canary" for i in range(number)])


@pytest.mark.parametrize("share", [0.01, 0.05, 0.25, 0.5, 1.0])
def test_conversations_are_dealt_out_by_share_and_stay(share: float) -> None:
    found = dealt(replace(SPLIT, canary_share=share))
    error = np.sqrt(share * (1 - share) / found.size)
    assert abs(found.mean() - share) <= 4 * error + 1e-9
    assert np.array_equal(found, dealt(replace(SPLIT, canary_share=share, shadow_share=0.5, stable=9)))
    fewer = dealt(replace(SPLIT, canary_share=share / 2))
    assert not (fewer & ~found).any(), "a conversation left the canary although its share grew"


def test_another_canary_gets_other_conversations() -> None:
    both = dealt(SPLIT) & dealt(replace(SPLIT, salt="8"))
    assert abs(both.mean() - 0.25) < 0.03


def test_whole_tenants() -> None:
    split = replace(SPLIT, canary_share=0.1, cohort=Cohort(frozenset({"acme"})))
    assert dealt(split, tenant="acme").all()
    assert not dealt(split, tenant="beta").any()
    assert [Arms(split).propensity("canary", tenant) for tenant in ("acme", "beta")] == [1.0, 0.0]


def test_a_part_of_whole_tenants_and_a_shard_of_all_others() -> None:
    split = replace(SPLIT, canary_share=0.1, cohort=Cohort(frozenset({"acme"}), 0.2, SPLIT.salt), within=0.75)
    assert abs(dealt(split, tenant="acme").mean() - 0.75) < 0.03
    chosen = {f"t{n}" for n in range(1000) if dealt(split, 40, f"t{n}").any()}
    assert abs(len(chosen) - 200) < 50
    more = replace(split, cohort=Cohort(frozenset(), 0.3, SPLIT.salt))
    assert chosen <= {f"t{n}" for n in range(1000) if dealt(more, 40, f"t{n}").any()}, "a tenant left a growing shard"
    grown = replace(split, cohort=None, canary_share=0.75)
    assert np.array_equal(dealt(split, tenant="acme"), dealt(grown, tenant="acme")), "conversations changed their arm"
    one = next(iter(chosen))
    assert Arms(split).propensity("canary", one) == 0.75


def test_nobody_else_is_answered_by_what_was_tried_on_some_tenants() -> None:
    """Not even where nothing else is ready; with a split by conversation anything is better than nothing."""
    split = replace(SPLIT, cohort=Cohort(frozenset({"acme"})))
    assert Arms(split).rank("stable")(row(4)) is None
    assert Arms(split).rank("canary")(row(3)) is not None
    assert Arms(SPLIT).rank("stable")(row(4)) is not None
    assert Arms(replace(split, canary=3)).rank("stable")(row(3)) == 0


def test_without_a_canary_or_a_share_everything_is_stable() -> None:
    assert not dealt(Split()).any()
    assert not dealt(replace(SPLIT, canary=None)).any()
    assert not dealt(replace(SPLIT, canary_share=0.0)).any()
    assert Arms().of_version(17) == "stable"
    assert not Arms(replace(SPLIT, canary=None, shadow_share=1.0)).is_mirrored("x")


def test_versions_say_the_arm() -> None:
    arms = Arms(SPLIT)
    assert [arms.of_version(version) for version in (3, 4, 2)] == ["stable", "canary", "former"]
    same = Arms(replace(SPLIT, canary=3))
    assert [same.of_version(3, wanted) for wanted in ("stable", "canary")] == ["stable", "canary"]


def test_replicas_are_ranked_by_how_well_their_version_fits() -> None:
    arms = Arms(replace(SPLIT, previous=2))
    rows = [row(3), row(3, "suspect"), row(2), row(4), row(1), row(3, arm=LEAVING)]
    ranks = [arms.rank("stable")(one) for one in rows]
    assert ranks == sorted(ranks), "own, own but suspect, the one before, the canary, unknown, leaving"
    assert len(set(ranks)) == len(ranks)
    rows = [row(4), row(3), row(2), row(1), row(4, arm=LEAVING)]
    ranks = [arms.rank("canary")(one) for one in rows]
    assert ranks == sorted(ranks)
    assert len(set(ranks)) == len(ranks)
    assert [arms.only_canary(one) for one in rows] == [0, None, None, None, None]


def played(folder: Path, tokenizer: Tokenizer, test: Any, *scripts: Script, split: Split = SPLIT, **more: Any) -> Seen:
    seen = Seen()

    async def play() -> None:
        more.setdefault("read_split", lambda: split)
        async with running_gateway(folder, tokenizer, *scripts, observations=seen, **more) as world:
            await test(world)

    asyncio.run(play())
    return seen


async def answers(world: World, number: int = 24) -> list[tuple[str, str, int, Any]]:
    """(arm, wanted arm, version, body) of a request in each of some conversations."""
    found = []
    for i in range(number):
        body = {"model": "policy", "messages": [{"role": "user", "content": f"{i}"}]}
        async with world.session.post(world.url + "/v1/chat/completions", json=body) as response:
            assert response.status == 200
            headers = response.headers
            arm = headers["x-weir-arm"]
            wanted = headers.get("x-weir-wanted-arm", arm)
            found.append((arm, wanted, int(headers["x-weir-policy-version"]), await response.json()))
    return found


def test_each_arm_is_answered_by_its_version_and_the_observer_is_told(tmp_path: Path, tokenizer: Tokenizer) -> None:
    scripts = Script(version="3"), Script(version="4")

    async def test(world: World) -> None:
        found = await answers(world)
        arms = Counter((arm, version) for arm, _, version, _ in found)
        assert set(arms) == {("stable", 3), ("canary", 4)}
        assert all(arm == wanted for arm, wanted, _, _ in found)
        for arm, _, version, body in found:
            assert (body["weir"]["arm"], body["weir"]["policy_version"]) == (arm, version)
            assert "wanted_arm" not in body["weir"]
            assert body["weir"]["policy_versions"][0][0]["version"] == version
        again = await answers(world)
        assert [arm for arm, *_ in again] == [arm for arm, *_ in found], "a conversation left its arm"

    seen = played(tmp_path, tokenizer, test, *scripts)
    assert len(seen.found) == 48
    one, texts = seen.found[0]
    assert texts == ["It is twelve."]
    assert (one.status, one.code, one.finishes, one.guard, one.is_mixed) == (200, "", ("stop",), "unwatched", False)
    assert one.tenant == "local"
    assert one.completion_tokens > 2
    assert one.ttft_s is not None
    assert 0 < one.ttft_s <= one.seconds
    assert "twelve" not in repr(one)
    assert len({one.conversation for one, _ in seen.found}) == 24


@pytest.mark.parametrize("canary", [Script(status=500), Script(lost_after=0)], ids=["fails", "lost"])
def test_where_the_canary_can_not_answer_stable_does_and_the_answer_says_so(
    canary: Script, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    canary.version = "4"

    async def test(world: World) -> None:
        found = await answers(world)
        assert {(arm, version) for arm, _, version, _ in found} == {("stable", 3)}
        moved = [body["weir"] for _, wanted, _, body in found if wanted == "canary"]
        assert moved
        assert {weir["wanted_arm"] for weir in moved} == {"canary"}

    seen = played(tmp_path, tokenizer, test, Script(version="3"), canary)
    assert {one.arm for one, _ in seen.found} == {"stable"}
    assert {one.wanted_arm for one, _ in seen.found} == {"stable", "canary"}


def test_a_replica_on_its_way_takes_nothing_unless_there_is_no_other(tmp_path: Path, tokenizer: Tokenizer) -> None:
    leaving, stays = Script(version="3", arm=LEAVING), Script(version="3")

    async def test(world: World) -> None:
        await answers(world, 6)
        assert not leaving.asked
        report(world.registry, world.replicas["r1"], "dead")
        await asyncio.sleep(0.8)
        assert {arm for arm, *_ in await answers(world, 6)} == {"stable"}
        assert len(leaving.asked) == 6

    played(tmp_path, tokenizer, test, leaving, stays, split=replace(SPLIT, canary=None, canary_share=0.0))


def test_a_swap_that_the_row_does_not_tell_yet_is_told_by_the_answer(tmp_path: Path, tokenizer: Tokenizer) -> None:
    swapped = Script(version="4", row_version=3)

    async def test(world: World) -> None:
        ((arm, wanted, version, body),) = await answers(world, 1)
        assert (arm, wanted, version) == ("canary", "stable", 4)
        assert body["system_fingerprint"] == "policy-4"
        events = await world.stream()
        (weir,) = [event["weir"] for event in events if "weir" in event]
        assert (weir["arm"], weir["wanted_arm"], weir["policy_version"]) == ("canary", "stable", 4)

    seen = played(tmp_path, tokenizer, test, swapped, split=replace(SPLIT, canary_share=0.0))
    assert {(one.arm, one.version) for one, _ in seen.found} == {("canary", 4)}


def test_a_split_that_changes_is_followed_and_one_that_can_not_be_read_stays(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    now: list[Split | Exception] = [replace(SPLIT, canary_share=1.0)]

    def read() -> Split:
        if isinstance(now[0], Exception):
            raise now[0]
        return now[0]

    async def test(world: World) -> None:
        assert {arm for arm, *_ in await answers(world, 4)} == {"canary"}
        now[0] = RegistryError("the database is away")
        await asyncio.sleep(0.7)
        assert {arm for arm, *_ in await answers(world, 4)} == {"canary"}
        now[0] = replace(SPLIT, canary=None, canary_share=0.0)
        await asyncio.sleep(0.7)
        assert {arm for arm, *_ in await answers(world, 4)} == {"stable"}
        assert [event["error"] for event in world.events if event["event"] == "split_unread"] == [
            "the database is away"
        ]

    played(tmp_path, tokenizer, test, Script(version="3"), Script(version="4"), read_split=read)


def test_copies_go_to_the_canary_last_in_line_and_users_do_not_notice(tmp_path: Path, tokenizer: Tokenizer) -> None:
    stable, canary = Script(version="3"), Script(version="4", text="A copy.", token_s=0.3)
    split = replace(SPLIT, canary_share=0.0, shadow_share=1.0)

    async def test(world: World) -> None:
        began_s = asyncio.get_running_loop().time()
        found = await answers(world, 6)
        assert asyncio.get_running_loop().time() - began_s < 0.9, "users waited for a slow canary"
        assert {(arm, wanted) for arm, wanted, *_ in found} == {("stable", "stable")}
        for _ in range(200):
            if len(seen_now()) == 8:
                break
            await asyncio.sleep(0.02)
        assert len(stable.asked) == 6
        assert {body["priority"] for body in canary.asked} == {40}
        assert {body["request_id"][:7] for body in canary.asked} == {"shadow-"}
        assert [body["token_ids"] for body in canary.asked] == [body["token_ids"] for body in stable.asked[:2]]

    seen = Seen(fails=True)

    def seen_now() -> list[Any]:
        return seen.found

    async def play() -> None:
        more: dict[str, Any] = {"read_split": lambda: split, "observations": seen, "max_shadows": 2}
        async with running_gateway(tmp_path, tokenizer, stable, canary, **more) as world:
            await test(world)
            await asyncio.sleep(1.1)
            totals = [event for event in world.events if event["event"] == "gateway"]
            assert sum(event.get("shadows", 0) for event in totals) == 2
            assert sum(event.get("shadows_left_out", 0) for event in totals) == 4

    asyncio.run(play())
    copies = [(one, texts) for one, texts in seen.found if one.is_shadow]
    assert {(one.arm, one.version, one.status) for one, _ in copies} == {("canary", 4, 200)}
    assert [texts for _, texts in copies] == [["A copy."]] * 2
    shown = {one.response_id for one, _ in seen.found if not one.is_shadow}
    assert {one.response_id for one, _ in copies} < shown, "a copy has the id of what it copies"


def test_a_copy_that_fails_is_observed_and_costs_the_canary_nothing(tmp_path: Path, tokenizer: Tokenizer) -> None:
    canary = Script(version="4", status=500)

    async def test(world: World) -> None:
        await answers(world, 5)
        await asyncio.sleep(0.3)
        assert len(canary.asked) == 5, "a replica is avoided for what only a copy met"
        assert world.gateway._replicas.totals() == {"r0": (5, 0)}

    split = replace(SPLIT, canary_share=0.0, shadow_share=1.0)
    seen = played(tmp_path, tokenizer, test, Script(version="3"), canary, split=split)
    assert [(one.arm, one.status, one.code) for one, _ in seen.found if one.is_shadow] == [
        ("canary", 503, "unavailable")
    ] * 5


def test_errors_of_an_arm_are_observed_and_those_before_it_are_not(tmp_path: Path, tokenizer: Tokenizer) -> None:
    async def test(world: World) -> None:
        assert (await world.ask(model="other"))[0] == 404
        assert (await world.ask())[0] == 502

    lost = Script(version="3", lost_after=2)
    seen = played(tmp_path, tokenizer, test, lost, split=replace(SPLIT, canary=None))
    ((one, _),) = seen.found
    assert (one.arm, one.version, one.status, one.code, one.finishes) == ("stable", 3, 502, "lost", ("",))
