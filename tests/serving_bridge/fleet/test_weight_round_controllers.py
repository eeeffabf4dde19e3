"""Controllers that die, are cancelled or overtaken amid a round: the next round mends what they left."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator

import pytest

from learner_jax.contracts.weights import WeightManifest
from serving_bridge.access import SERVE_ROUTE, SWAP_ROUTE
from serving_bridge.fleet import weight_round
from serving_bridge.fleet.weight_round import RoundOutcome, run_round
from tests.support.broken_versions import flip_bit
from tests.support.meddling import DiedError, meddling
from tests.support.weight_world import SETTINGS, World, assert_serves, golden_of

pytest.importorskip("vllm", reason="vLLM is not installed")
pytestmark = pytest.mark.slow

#: one world for all tests of rounds: starting it takes longer than they do
pytest_plugins = ["tests.support.weight_fixtures"]

#: long enough for a round on a busy machine to stage and to get as far as its swap
LEASE_S = 2.0


def test_a_controller_that_dies_after_any_step_leaves_nothing_that_the_next_round_cannot_mend(world: World):
    models = [world.model_a, world.model_b]
    versions = {world.update(world.model_b).version: world.model_b}
    died = left_paused = 0
    for last in itertools.count(1):
        manifest = world.publish(models[last % 2])
        versions[manifest.version] = models[last % 2]
        steps = itertools.count(1)

        async def die(route: str, steps: Iterator[int] = steps, last: int = last) -> None:
            if next(steps) > last:
                raise DiedError

        client = meddling(world.client, world.session, before=die)
        try:
            world.run(run_round(client, manifest, SETTINGS, round_id=f"round-{last}"))
        except DiedError:
            died += 1
        else:
            break
        if world.run(world.client.is_paused()):
            left_paused += 1
        else:
            assert_serves(world, versions)
        outcome = world.run(run_round(world.client, manifest, SETTINGS, round_id=f"round-{last}"))
        assert outcome.status == "updated", (last, outcome)
        assert assert_serves(world, versions) == manifest.version
    assert died >= 7
    assert left_paused >= 1


def test_a_round_cancelled_after_any_step_leaves_the_engine_serving(world: World):
    models = [world.model_a, world.model_b]
    versions = {world.update(world.model_b).version: world.model_b}
    ended_on_new = []
    for last in itertools.count(1):
        manifest = world.publish(models[last % 2])
        versions[manifest.version] = models[last % 2]

        async def cancelled_round(last: int = last, manifest: WeightManifest = manifest) -> bool:
            steps = itertools.count(1)

            async def cancel(route: str) -> None:
                if next(steps) == last:
                    work.cancel()

            client = meddling(world.client, world.session, after=cancel)
            work = asyncio.create_task(run_round(client, manifest, SETTINGS))
            try:
                await work
            except asyncio.CancelledError:
                return True
            return False

        if not world.run(cancelled_round()):
            break
        ended_on_new.append(assert_serves(world, versions) == manifest.version)
    # Cancelled early it is the old version; once weights had changed, the new one.
    assert len(ended_on_new) >= 8
    assert ended_on_new == sorted(ended_on_new)
    assert not ended_on_new[0]
    assert ended_on_new[-1]
    world.update(world.model_b)


def test_another_controllers_round_waits_for_a_dead_ones_lease(world: World, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(weight_round, "_LEASE_MARGIN_S", 0.2)
    settings = SETTINGS.model_copy(update={"update_timeout_s": 0.8})
    world.update(world.model_b)
    manifest = world.publish(world.model_a)

    dead = False

    async def die(route: str) -> None:
        nonlocal dead
        dead = dead or route == SERVE_ROUTE
        if dead:
            raise DiedError

    async def rounds() -> list[RoundOutcome]:
        with pytest.raises(DiedError):
            await run_round(meddling(world.client, world.session, before=die), manifest, settings, round_id="dead")
        outcomes = []
        while not outcomes or outcomes[-1].status == "rejected":
            outcomes.append(await run_round(world.client, manifest, settings))
            await asyncio.sleep(0.05)
        return outcomes

    *refused, last = world.run(rounds())
    assert refused
    assert all("round dead of another controller holds this replica" in (outcome.error or "") for outcome in refused)
    assert last.status == "updated", last
    assert assert_serves(world, {manifest.version: world.model_a}) == manifest.version


def test_of_two_controllers_at_once_one_wins_and_the_other_changes_nothing(world: World):
    versions = {world.update(world.model_b).version: world.model_b}

    async def both(first: WeightManifest, second: WeightManifest, delay_s: float) -> list[RoundOutcome]:
        async def later() -> RoundOutcome:
            await asyncio.sleep(delay_s)
            return await run_round(world.client, second, SETTINGS)

        return list(await asyncio.gather(run_round(world.client, first, SETTINGS), later()))

    for delay_s in (0.0, 0.02, 0.05, 0.08):
        manifests = [world.publish(world.model_a), world.publish(world.model_b)]
        versions |= {manifests[0].version: world.model_a, manifests[1].version: world.model_b}
        outcomes = world.run(both(*manifests, delay_s))
        assert {outcome.status for outcome in outcomes} <= {"updated", "rejected"}, outcomes
        won = [outcome.version for outcome in outcomes if outcome.status == "updated"]
        assert won
        assert assert_serves(world, versions) == max(won)


@pytest.mark.parametrize(("held_up_at", "status"), [("/start_weight_update", "rejected"), (SWAP_ROUTE, "unfit")])
def test_a_controller_that_was_held_up_past_its_lease_does_not_touch_what_the_next_one_did(
    world: World, monkeypatch: pytest.MonkeyPatch, held_up_at: str, status: str
):
    world.update(world.model_b)
    slow, quick = world.publish(world.model_a), world.publish(world.model_b)
    monkeypatch.setattr(weight_round, "_lease_s", lambda settings: LEASE_S)
    outcomes = []

    async def be_overtaken(route: str) -> None:
        if route == held_up_at and not outcomes:
            await asyncio.sleep(LEASE_S + 0.1)
            outcomes.append(await run_round(world.client, quick, SETTINGS))

    client = meddling(world.client, world.session, before=be_overtaken)
    outcome = world.run(run_round(client, slow, SETTINGS))
    assert outcomes[0].status == "updated", outcomes
    assert outcome.status == status
    assert assert_serves(world, {quick.version: world.model_b}) == quick.version


def test_a_controller_that_was_held_up_past_its_lease_does_not_end_the_next_ones_pause(
    world: World, monkeypatch: pytest.MonkeyPatch
):
    world.update(world.model_b)
    slow, quick = world.publish(world.model_a), world.publish(world.model_b)
    monkeypatch.setattr(weight_round, "_lease_s", lambda settings: LEASE_S)

    async def overtaken_round() -> tuple[RoundOutcome, RoundOutcome]:
        next_is_halfway, first_has_ended = asyncio.Event(), asyncio.Event()

        async def wait_for_the_first(route: str) -> None:
            if route == SWAP_ROUTE:
                next_is_halfway.set()
                async with asyncio.timeout(30):
                    await first_has_ended.wait()
                assert await world.client.is_paused()

        async def be_overtaken(route: str) -> None:
            if route == SWAP_ROUTE:
                await asyncio.sleep(LEASE_S + 0.1)
                following.append(asyncio.create_task(run_round(second, quick, SETTINGS)))
                await next_is_halfway.wait()

        following: list[asyncio.Task[RoundOutcome]] = []
        second = meddling(world.client, world.session, after=wait_for_the_first)
        outcome = await run_round(meddling(world.client, world.session, after=be_overtaken), slow, SETTINGS)
        monkeypatch.undo()  # from here on the second may take its time
        first_has_ended.set()
        return outcome, await following[0]

    first, second = world.run(overtaken_round())
    assert first.status == "unfit"
    assert second.status in ("updated", "unfit"), second
    world.update(world.model_b)


def test_a_dead_controllers_pause_is_ended_even_by_a_round_that_is_rejected(world: World):
    served = world.update(world.model_b)

    async def die_halfway() -> None:
        control = world.client.control()
        await control.start_update()
        await control.pause()

    world.run(die_halfway())
    assert world.run(run_round(world.client, flip_bit(world), SETTINGS)).status == "rejected"
    assert assert_serves(world, {served.version: world.model_b}) == served.version


def test_a_dead_controllers_pause_over_weights_that_nothing_proved_is_not_ended_by_a_rejected_round(world: World):
    world.update(world.model_b)
    wrong = world.publish(world.model_a, golden=golden_of(world.model_b))
    dead = False

    async def die(route: str) -> None:
        nonlocal dead
        dead = dead or route == "/abort_requests"
        if dead:
            raise DiedError

    with pytest.raises(DiedError):
        world.run(run_round(meddling(world.client, world.session, before=die), wrong, SETTINGS, round_id="same"))
    outcome = world.run(run_round(world.client, flip_bit(world), SETTINGS, round_id="same"))
    assert outcome.status == "unfit"
    assert world.run(world.client.is_paused())
    manifest = world.update(world.model_a)
    assert assert_serves(world, {manifest.version: world.model_a}) == manifest.version
