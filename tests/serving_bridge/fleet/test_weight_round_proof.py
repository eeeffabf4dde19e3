"""No token comes from weights whose golden prompts did not pass, and what failed once is proven anew."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import numpy as np
import pytest

from learner_jax.contracts.weights import WeightManifest
from serving_bridge.access import FENCING_HEADER, ROUND_ROUTE, SERVE_ROUTE, SWAP_ROUTE
from serving_bridge.fleet.golden_probe import PROBE_TOLERANCE
from serving_bridge.fleet.weight_round import RoundOutcome, run_round
from serving_bridge.vllm.client import Aborted, Completion
from tests.support.broken_versions import WRONG
from tests.support.meddling import DiedError, meddling
from tests.support.weight_world import (
    PROMPTS,
    SETTINGS,
    TOLERANCE,
    World,
    assert_serves,
    golden_of,
    next_logprobs,
    round_amid_answers,
)

pytest.importorskip("vllm", reason="vLLM is not installed")
pytestmark = pytest.mark.slow

#: one world for all tests of rounds: starting it takes longer than they do
pytest_plugins = ["tests.support.weight_fixtures"]


async def stage_as_the_last_round(world: World, manifest: WeightManifest) -> None:
    """Stages with the fencing token that was given last; only a fault of ours could do so."""
    url, headers = world.client.base_url, world.client.authorization
    async with world.session.post(url + ROUND_ROUTE, headers=headers) as response:
        token = (await response.json())["fencing_token"] - 1
    wanted = {"version": manifest.version, "content_sha256": manifest.content_sha256}
    body = {"method": "weir_stage", "kwargs": {**wanted, "round_id": "mine", "lease_s": 60.0}}
    headers = headers | {FENCING_HEADER: str(token)}
    async with world.session.post(f"{url}/collective_rpc", json=body, headers=headers) as response:
        assert response.status == 200


def test_a_version_replaced_after_staging_is_rejected_inside_the_pause(world: World):
    served, other, wanted = world.update(world.model_b), world.publish(world.model_a), world.publish(world.model_a)

    async def stage_another(route: str) -> None:
        if route == SWAP_ROUTE:
            await stage_as_the_last_round(world, other)
            while (await world.client.worker_status()).state == "reading":
                await asyncio.sleep(0.01)

    client = meddling(world.client, world.session, before=stage_another)
    outcome = world.run(run_round(client, wanted, SETTINGS, round_id="mine"))
    assert outcome.status == "rejected"
    assert f"version {wanted.version}" in (outcome.error or "")
    assert f"got version {other.version}" in (outcome.error or "")
    assert outcome.num_running == 0
    assert assert_serves(world, {served.version: world.model_b}) == served.version


def test_steps_that_take_too_long_are_given_up(world: World):
    served, wanted = world.update(world.model_b), world.publish(world.model_a)
    settings = SETTINGS.model_copy(update={"update_timeout_s": 0.3})

    async def dawdle_at(slow: str, route: str) -> None:
        if route == slow:
            await asyncio.sleep(0.6)

    for slow, status in (("/collective_rpc", "rejected"), (SWAP_ROUTE, "unfit")):
        client = meddling(world.client, world.session, after=lambda route, slow=slow: dawdle_at(slow, route))
        outcome = world.run(run_round(client, wanted, settings))
        assert outcome.status == status
        assert "serving.update_timeout_s = 0.3 s" in (outcome.error or "")
        if status == "rejected":
            assert assert_serves(world, {served.version: world.model_b}) == served.version
    assert world.run(world.client.is_paused()), "weights that nothing proved are served"
    world.update(world.model_b)
    assert not world.run(world.client.is_paused())


def test_no_token_comes_from_weights_that_fail_their_probe(world: World):
    served = world.update(world.model_b)
    wrong = world.publish(world.model_a, golden=golden_of(world.model_b))

    async def dawdle(route: str) -> None:
        if route == SWAP_ROUTE:
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
        outcome = await run_round(meddling(world.client, world.session, after=dawdle), wrong, SETTINGS)
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


def test_answers_beside_a_proof_that_nobody_judged_end_with_what_was_sent_before(world: World):
    served, undecided, wanted = world.update(world.model_b), world.publish(world.model_a), world.publish(world.model_b)

    async def die_before(route: str) -> None:
        if route == SERVE_ROUTE:
            raise DiedError

    async def answer(prompt: Sequence[int]) -> Completion:
        (given,) = await world.client.generate(
            prompt, n=1, max_tokens=200, stop_token_ids=(), timeout_s=60, unfinished=True
        )
        return given

    async def rounds_amid() -> tuple[RoundOutcome, list[Completion]]:
        answering = [asyncio.create_task(answer(prompt)) for prompt in PROMPTS]
        while await world.client.num_requests() == 0:
            await asyncio.sleep(0.01)
        with pytest.raises(DiedError):
            await run_round(meddling(world.client, world.session, before=die_before), undecided, SETTINGS, round_id="a")
        assert await world.client.is_paused()
        outcome = await run_round(world.client, wanted, SETTINGS, round_id="a")
        return outcome, await asyncio.wait_for(asyncio.gather(*answering), 30)

    outcome, answers = world.run(rounds_amid())
    assert outcome.status == "updated", outcome
    for prompt, given in zip(PROMPTS, answers, strict=True):
        assert given.finish_reason == "abort"
        assert set(given.policy_version.tolist()) == {served.version}
        want = next_logprobs(world.model_b, [*prompt, *given.tokens.tolist()])[len(prompt) - 1 :]
        np.testing.assert_allclose(given.logprobs, want, atol=TOLERANCE, rtol=0)
    assert assert_serves(world, {wanted.version: world.model_b}) == wanted.version


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

    client = meddling(world.client, world.session, after=note)
    outcome = world.run(run_round(client, manifest, SETTINGS))
    assert outcome.status == "updated"
    assert outcome.probe_max_abs is not None
    assert SWAP_ROUTE in routes
    assert "/start_weight_update" not in routes
    np.testing.assert_array_equal(world.run(world.client.prompt_logprobs(PROMPTS[2], timeout_s=60)), before)
    assert assert_serves(world, {manifest.version: world.model_b}) == manifest.version
    spoiled = msgspec.structs.replace(manifest, golden=golden_of(world.model_a))
    assert world.run(run_round(world.client, spoiled, SETTINGS)).status == "unfit"
    assert world.run(world.client.is_paused())
    assert world.run(world.client.weight_version()) is None
    assert world.run(run_round(world.client, manifest, SETTINGS)).status == "updated"
