"""Weight rounds that go wrong at any point: what is served stays whole, and proven weights only are sampled from."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import msgspec
import numpy as np
import pytest

from learner_jax.contracts.weights import GoldenPrompt, WeightManifest
from serving_bridge.fleet import golden_probe, weight_round
from serving_bridge.fleet.golden_probe import PROBE_TOLERANCE
from serving_bridge.fleet.weight_round import RoundOutcome, run_round
from serving_bridge.processes.guard import descendants
from serving_bridge.vllm.client import Aborted, Completion, VllmClient
from tests.support.broken_versions import WRONG, flip_bit
from tests.support.weight_world import (
    PROMPTS,
    SETTINGS,
    TOLERANCE,
    World,
    golden_of,
    greedily,
    next_logprobs,
    round_amid_answers,
)

pytest.importorskip("vllm", reason="vLLM is not installed")
pytestmark = pytest.mark.slow

#: one world for all tests of rounds: starting it takes longer than they do
pytest_plugins = ["tests.support.weight_fixtures"]


def process_tree(root: int) -> list[int]:
    return [root, *descendants(root)]


def alive(pids: Sequence[int]) -> list[int]:
    found = []
    for pid in pids:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if state != "Z":
            found.append(pid)
    return found


class Meddling(VllmClient):
    """A client that lets something happen right before or after each of its requests, by their route."""

    after: Callable[[str], Awaitable[None]]
    before: Callable[[str], Awaitable[None]]

    async def _request(self, method: str, route: str, **arguments: Any) -> bytes:
        await self.before(route)
        payload = await super()._request(method, route, **arguments)
        await self.after(route)
        return payload


async def nothing(route: str) -> None:
    """Doesn't meddle."""


def meddling(
    client: VllmClient,
    world: World,
    *,
    after: Callable[[str], Awaitable[None]] = nothing,
    before: Callable[[str], Awaitable[None]] = nothing,
) -> Meddling:
    meddler = Meddling(client.base_url, world.session, control_timeout_s=30, token=client.token)
    meddler.before, meddler.after = before, after
    return meddler


def assert_serves(world: World, served: dict[int, Any]) -> int:
    """The replica isn't paused and has one of these versions, name and weights alike; returns which."""
    assert not world.run(world.client.is_paused())
    (version,) = set(world.run(greedily(world.client, PROMPTS[0], 3)).policy_version.tolist())
    got = world.run(world.client.prompt_logprobs(PROMPTS[2], timeout_s=60))
    np.testing.assert_allclose(got, next_logprobs(served[version], PROMPTS[2]), atol=TOLERANCE, rtol=0)
    return int(version)


def test_a_version_replaced_after_staging_is_rejected_inside_the_pause(world: World):
    served, other, wanted = world.update(world.model_b), world.publish(world.model_a), world.publish(world.model_a)

    async def stage_another(route: str) -> None:
        if route == "/pause":
            await world.client.stage(other.version, other.content_sha256, "mine", 60)
            while (await world.client.worker_status()).state == "reading":
                await asyncio.sleep(0.01)

    client = meddling(world.client, world, after=stage_another)
    outcome = world.run(run_round(client, wanted, SETTINGS, round_id="mine"))
    assert outcome.status == "rejected"
    assert f"version {wanted.version}" in (outcome.error or "")
    assert f"got version {other.version}" in (outcome.error or "")
    assert outcome.num_running == 0
    assert assert_serves(world, {served.version: world.model_b}) == served.version


class DiedError(Exception):
    """A controller's end, at a point where it can't do anything about it."""


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

        client = meddling(world.client, world, before=die)
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
    assert died >= 12
    assert left_paused >= 5


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

            client = meddling(world.client, world, after=cancel)
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
    assert len(ended_on_new) >= 12
    assert ended_on_new == sorted(ended_on_new)
    assert not ended_on_new[0]
    assert ended_on_new[-1]
    world.update(world.model_b)


def test_steps_that_take_too_long_are_given_up(world: World):
    served, wanted = world.update(world.model_b), world.publish(world.model_a)
    settings = SETTINGS.model_copy(update={"update_timeout_s": 0.3})

    async def dawdle_at(slow: str, route: str) -> None:
        if route == slow:
            await asyncio.sleep(0.6)

    for slow, status in (("/pause", "rejected"), ("/inference/v1/generate", "unfit")):
        client = meddling(world.client, world, after=lambda route, slow=slow: dawdle_at(slow, route))
        outcome = world.run(run_round(client, wanted, settings))
        assert outcome.status == status
        assert "serving.update_timeout_s = 0.3 s" in (outcome.error or "")
        if status == "rejected":
            assert assert_serves(world, {served.version: world.model_b}) == served.version
    assert world.run(world.client.is_paused()), "weights that nothing proved are served"
    world.update(world.model_b)
    assert not world.run(world.client.is_paused())


def test_another_controllers_round_waits_for_a_dead_ones_lease(world: World, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(weight_round, "_LEASE_MARGIN_S", 0.2)
    settings = SETTINGS.model_copy(update={"update_timeout_s": 0.8})
    world.update(world.model_b)
    manifest = world.publish(world.model_a)

    dead = False

    async def die(route: str) -> None:
        nonlocal dead
        dead = dead or route == "/finish_weight_update"
        if dead:
            raise DiedError

    async def rounds() -> list[RoundOutcome]:
        with pytest.raises(DiedError):
            await run_round(meddling(world.client, world, before=die), manifest, settings, round_id="dead")
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


@pytest.mark.parametrize(("held_up_at", "status"), [("/metrics", "rejected"), ("/update_weights", "unfit")])
def test_a_controller_that_was_held_up_past_its_lease_does_not_touch_what_the_next_one_did(
    world: World, monkeypatch: pytest.MonkeyPatch, held_up_at: str, status: str
):
    world.update(world.model_b)
    slow, quick = world.publish(world.model_a), world.publish(world.model_b)
    monkeypatch.setattr(weight_round, "_lease_s", lambda settings: 0.5)
    outcomes = []

    async def be_overtaken(route: str) -> None:
        if route == held_up_at and not outcomes:
            await asyncio.sleep(0.6)
            outcomes.append(await run_round(world.client, quick, SETTINGS))

    client = meddling(world.client, world, before=be_overtaken)
    outcome = world.run(run_round(client, slow, SETTINGS))
    assert outcomes[0].status == "updated", outcomes
    assert outcome.status == status
    assert assert_serves(world, {quick.version: world.model_b}) == quick.version


def test_a_controller_that_was_held_up_past_its_lease_does_not_end_the_next_ones_pause(
    world: World, monkeypatch: pytest.MonkeyPatch
):
    world.update(world.model_b)
    slow, quick = world.publish(world.model_a), world.publish(world.model_b)
    monkeypatch.setattr(weight_round, "_lease_s", lambda settings: 0.5)

    async def overtaken_round() -> tuple[RoundOutcome, RoundOutcome]:
        next_is_halfway, first_has_ended = asyncio.Event(), asyncio.Event()

        async def wait_for_the_first(route: str) -> None:
            if route == "/pause":
                next_is_halfway.set()
                async with asyncio.timeout(30):
                    await first_has_ended.wait()
                assert await world.client.is_paused()

        async def be_overtaken(route: str) -> None:
            if route == "/pause":
                await asyncio.sleep(0.6)
                following.append(asyncio.create_task(run_round(second, quick, SETTINGS)))
                await next_is_halfway.wait()

        following: list[asyncio.Task[RoundOutcome]] = []
        second = meddling(world.client, world, after=wait_for_the_first)
        outcome = await run_round(meddling(world.client, world, after=be_overtaken), slow, SETTINGS)
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
        await world.client.start_update()
        await world.client.pause()

    world.run(die_halfway())
    assert world.run(run_round(world.client, flip_bit(world), SETTINGS)).status == "rejected"
    assert assert_serves(world, {served.version: world.model_b}) == served.version


@pytest.mark.parametrize("last", ["/finish_weight_update", "/inference/v1/generate"])
def test_a_dead_controllers_pause_over_weights_that_nothing_proved_is_not_ended_by_a_rejected_round(
    world: World, last: str
):
    world.update(world.model_b)
    wrong = world.publish(world.model_a, golden=golden_of(world.model_b))
    dead = False

    async def die(route: str) -> None:
        nonlocal dead
        dead = dead or route == last
        if dead:
            raise DiedError

    with pytest.raises(DiedError):
        world.run(run_round(meddling(world.client, world, before=die), wrong, SETTINGS, round_id="same"))
    outcome = world.run(run_round(world.client, flip_bit(world), SETTINGS, round_id="same"))
    assert outcome.status == "unfit"
    assert world.run(world.client.is_paused())
    manifest = world.update(world.model_a)
    assert assert_serves(world, {manifest.version: world.model_a}) == manifest.version


def test_no_token_is_sampled_from_weights_that_fail_their_probe(world: World):
    served = world.update(world.model_b)
    wrong = world.publish(world.model_a, golden=golden_of(world.model_b))

    async def dawdle(route: str) -> None:
        if route in ("/update_weights", "/inference/v1/generate"):
            await asyncio.sleep(0.3)  # hundreds of tokens' time

    async def answer(prompt: Sequence[int]) -> dict[str, Any]:
        sampling = {"max_tokens": 200, "ignore_eos": True, "logprobs": 0, "detokenize": False}
        body = {"token_ids": list(prompt), "sampling_params": sampling}
        async with world.session.post(
            f"{world.client.base_url}/inference/v1/generate", json=body, headers=world.client.authorization
        ) as response:
            return await response.json()

    async def round_amid() -> tuple[RoundOutcome, list[dict[str, Any]]]:
        answering = [asyncio.create_task(answer(prompt)) for prompt in PROMPTS * 3]
        while await world.client.num_requests() == 0:
            await asyncio.sleep(0.01)
        outcome = await run_round(meddling(world.client, world, after=dawdle), wrong, SETTINGS)
        return outcome, await asyncio.wait_for(asyncio.gather(*answering), 30)

    outcome, answers = world.run(round_amid())
    assert outcome.status == "unfit"
    assert outcome.num_running
    assert world.run(world.client.is_paused())
    for prompt, given in zip(PROMPTS * 3, answers, strict=True):
        (choice,) = given["choices"]
        assert choice["finish_reason"] == "abort"
        tokens = choice["token_ids"]
        assert 0 < len(tokens) < 200
        assert choice["weight_versions"] == [{"version": str(served.version), "start": 0, "end": len(tokens)}]
        got = [entry["logprob"] for entry in choice["logprobs"]["content"]]
        want = next_logprobs(world.model_b, [*prompt, *tokens])[len(prompt) - 1 :]
        np.testing.assert_allclose(got, want, atol=TOLERANCE, rtol=0)
    world.update(world.model_b)


def test_the_probe_catches_weights_that_are_not_the_learners(world: World):
    world.update(world.model_b)
    wrong = world.publish(world.model_a, golden=golden_of(world.model_b))
    outcome, answered = world.run(round_amid_answers(world, wrong))
    assert outcome.status == "unfit"
    assert outcome.probe_max_abs is not None
    assert outcome.probe_max_abs > 0.1
    assert "serving.probe_tolerance" in (outcome.error or "")
    assert outcome.probe_s < outcome.pause_s
    assert world.run(world.client.is_paused())
    assert world.run(world.client.weight_version()) is None
    assert all(isinstance(answer, Aborted) and answer.retryable for answer in answered), answered
    # What failed once is proven anew by the next round, though it is applied, and fails again.
    assert world.run(world.replica.update(world.store, wrong)).status == "unfit"
    assert world.run(world.client.is_paused())
    world.update(world.model_b)
    assert not world.run(world.client.is_paused())


@pytest.mark.parametrize("publish", WRONG)
def test_a_wrong_tensor_exceeds_the_tolerance_of_every_dtype_by_far(
    world: World, publish: Callable[[World], WeightManifest]
):
    settings = SETTINGS.model_copy(update={"probe_tolerance": None})
    outcome = world.run(run_round(world.client, publish(world), settings))
    assert outcome.status == "unfit"
    assert "expected at most 0.001 " in (outcome.error or "")
    assert outcome.probe_max_abs is not None
    assert outcome.probe_max_abs > 2 * PROBE_TOLERANCE["bfloat16"]
    assert outcome.probe_max_abs > 500 * PROBE_TOLERANCE["float32"]
    world.update(world.model_b)


def test_a_probe_that_gives_nan_anywhere_is_no_pass():
    class Client:
        def probe_ids(self, count: int) -> list[str]:
            return [str(index) for index in range(count)]

        async def prompt_logprobs(self, tokens: Sequence[int], **_: Any) -> np.ndarray:
            return np.full(len(tokens) - 1, np.nan if len(tokens) == 3 else -1.0, np.float32)

    golden = [GoldenPrompt([1, 2], [-1.0]), GoldenPrompt([1, 2, 3], [-1.0, -1.0]), GoldenPrompt([1, 2], [-1.0])]
    assert np.isnan(asyncio.run(golden_probe.probe(Client(), golden, 1.0)))  # type: ignore[arg-type]
    assert asyncio.run(golden_probe.probe(Client(), golden[:1], 1.0)) == 0.0  # type: ignore[arg-type]


def test_the_tolerance_is_that_of_the_dtype_unless_it_is_set():
    dtypes = get_args(type(SETTINGS).model_fields["dtype"].annotation)
    assert set(PROBE_TOLERANCE) == set(dtypes)
    for dtype in dtypes:
        by_dtype = SETTINGS.model_copy(update={"dtype": dtype, "probe_tolerance": None})
        assert golden_probe.probe_tolerance(by_dtype) == PROBE_TOLERANCE[dtype]
        assert golden_probe.probe_tolerance(by_dtype.model_copy(update={"probe_tolerance": 0.7})) == 0.7


def test_a_version_without_golden_prompts_is_never_served(world: World):
    served = world.update(world.model_b)
    outcome = world.run(world.replica.update(world.store, world.publish(world.model_a, golden=[])))
    assert outcome.status == "rejected"
    assert "no golden prompts" in (outcome.error or "")
    assert assert_serves(world, {served.version: world.model_b}) == served.version


def test_a_version_that_is_applied_already_is_proven_again_but_not_loaded_again(world: World):
    manifest = world.update(world.model_b)
    before = world.run(world.client.prompt_logprobs(PROMPTS[2], timeout_s=60))
    routes = []

    async def note(route: str) -> None:
        routes.append(route)

    client = meddling(world.client, world, after=note)
    outcome = world.run(run_round(client, manifest, SETTINGS))
    assert outcome.status == "updated"
    assert outcome.probe_max_abs is not None
    assert "/pause" in routes
    assert "/update_weights" not in routes
    np.testing.assert_array_equal(world.run(world.client.prompt_logprobs(PROMPTS[2], timeout_s=60)), before)
    assert assert_serves(world, {manifest.version: world.model_b}) == manifest.version
    spoiled = msgspec.structs.replace(manifest, golden=golden_of(world.model_a))
    assert world.run(run_round(world.client, spoiled, SETTINGS)).status == "unfit"
    assert world.run(world.client.is_paused())
    assert world.run(world.client.weight_version()) is None
    assert world.run(run_round(world.client, manifest, SETTINGS)).status == "updated"


def test_stop_lets_answers_finish_and_leaves_no_process(world: World):
    world.update(world.model_b)
    assert world.replica._process is not None
    pids = process_tree(world.replica._process.pid)
    assert len(pids) >= 4, "guard, API server, engine core and worker"

    async def stop_amid_answers() -> list[Completion]:
        sampling = asyncio.create_task(
            world.client.generate(PROMPTS[0], n=4, max_tokens=150, stop_token_ids=[], timeout_s=60)
        )
        while await world.client.num_requests() == 0:
            await asyncio.sleep(0.01)
        stopping = asyncio.create_task(world.replica.stop())
        answers = await sampling
        await stopping
        return answers

    answers = world.run(stop_amid_answers())
    assert [len(answer.tokens) for answer in answers] == [150] * 4
    assert world.replica.exit_status() == 0
    assert alive(pids) == []


def test_a_replica_out_of_reach_is_unfit(world: World):
    outcome = world.run(run_round(world.client, world.publish(world.model_b), SETTINGS))
    assert outcome.status == "unfit"
    assert "Cannot connect" in (outcome.error or "")


def test_a_server_that_hangs_inside_the_pause_is_unfit_in_bounded_time(world: World):
    pids = process_tree(world.fresh_supervisor.pid)[1:]

    async def hang(route: str) -> None:
        if route == "/pause":
            for pid in pids:
                os.kill(pid, signal.SIGSTOP)

    client = Meddling(world.fresh.base_url, world.session, control_timeout_s=0.3, token=world.fresh.token)
    client.before, client.after = nothing, hang
    started = time.monotonic()
    try:
        outcome = world.run(run_round(client, world.publish(world.model_a), SETTINGS))
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
    assert outcome.status == "unfit"
    assert "no answer within 0.3 s" in (outcome.error or "")
    assert time.monotonic() - started < 5


def test_kill_9_of_the_supervising_process_amid_a_round_leaves_no_server_and_an_unfit_replica(world: World):
    pids = process_tree(world.fresh_supervisor.pid)
    assert len(pids) >= 5, "supervisor, guard, API server, engine core and worker"

    async def kill(route: str) -> None:
        if route != "/pause":
            return
        os.kill(world.fresh_supervisor.pid, signal.SIGKILL)
        world.fresh_supervisor.wait()
        deadline = time.monotonic() + 40
        while left := alive(pids):
            assert time.monotonic() < deadline, f"processes {left} are still there"
            await asyncio.sleep(0.1)

    client = meddling(world.fresh, world, after=kill)
    outcome = world.run(run_round(client, world.publish(world.model_a), SETTINGS, round_id="last"))
    assert alive(pids) == []
    assert outcome.status == "unfit"
    assert "Cannot connect" in (outcome.error or "")
