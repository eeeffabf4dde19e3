"""Weight rounds against real vLLM servers: what is served is exactly what was published, or what was served before.

Two servers run on the CPU: `replica`, which starts on weights A and is updated, and a fresh one on weights B.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from learner_jax.contracts.weights import WeightManifest
from serving_bridge.vllm.client import Completion, Rejected, Unversioned
from tests.support.broken_versions import BROKEN
from tests.support.weight_world import (
    EOS,
    PROMPTS,
    TOLERANCE,
    World,
    greedily,
    greedy,
    next_logprobs,
    round_amid_answers,
)

pytest.importorskip("vllm", reason="vLLM is not installed")
pytestmark = pytest.mark.slow

#: one world for all tests of rounds: starting it takes longer than they do
pytest_plugins = ["tests.support.weight_fixtures"]


def test_a_started_replica_is_stale_and_its_answers_are_refused(world: World):
    assert world.run(world.client.weight_version()) is None
    with pytest.raises(Unversioned, match="'default', expected a policy version") as caught:
        world.run(greedily(world.client, [5, 6], 2))
    assert caught.value.retryable


def test_a_token_outside_the_vocabulary_is_rejected_and_kills_nothing(world: World):
    with pytest.raises(Rejected, match="500 is out of vocabulary"):
        world.run(greedily(world.client, [5, 500], 2))
    assert world.run(world.client.is_healthy())


def test_after_an_update_the_replica_equals_a_fresh_server_and_transformers(world: World):
    manifest = world.publish(world.model_b)
    outcome = world.run(world.replica.update(world.store, manifest))
    assert outcome.status == "updated", outcome
    assert outcome.error is None
    assert outcome.num_running == 0
    assert outcome.probe_max_abs is not None
    assert 0 < outcome.probe_max_abs < TOLERANCE
    assert 0 < outcome.pause_s < 10
    assert world.run(world.client.weight_version()) == manifest.version
    # The proof leaves the golden prompts in the prefix cache, where blocks are full, and computed them together.
    for prompt in (*PROMPTS[:2], [token + 1 for token in PROMPTS[2]]):
        updated = world.run(greedily(world.client, prompt, 60))
        fresh = world.run(greedily(world.fresh, prompt, 60))
        np.testing.assert_array_equal(updated.tokens, fresh.tokens)
        np.testing.assert_array_equal(updated.tokens, greedy(world.model_b, prompt, 60))
        # Same kernels, same weights, same batch: nothing may differ.
        np.testing.assert_array_equal(updated.logprobs, fresh.logprobs)
        want = next_logprobs(world.model_b, [*prompt, *updated.tokens.tolist()])[len(prompt) - 1 :]
        np.testing.assert_allclose(updated.logprobs, want, atol=TOLERANCE, rtol=0)
        assert set(updated.policy_version.tolist()) == {manifest.version}
        assert world.run(greedily(world.client, prompt, 1)).tokens[0] != greedy(world.model_a, prompt, 1)[0]


def test_logprobs_are_those_after_temperature_and_a_stop_token_ends_the_answer(world: World):
    world.update(world.model_b)
    stop = [EOS, *range(2, 40)]
    answers = world.run(
        world.client.generate(
            PROMPTS[0], n=8, max_tokens=100, temperature=0.7, seed=3, stop_token_ids=stop, timeout_s=60
        )
    )
    assert len({tuple(answer.tokens.tolist()) for answer in answers}) == 8
    for answer in answers:
        assert answer.finish_reason == "stop"
        assert answer.tokens[-1] in stop
        assert not np.isin(answer.tokens[:-1], stop).any()
        tokens = [*PROMPTS[0], *answer.tokens.tolist()]
        want = next_logprobs(world.model_b, tokens, temperature=0.7)[len(PROMPTS[0]) - 1 :]
        np.testing.assert_allclose(answer.logprobs, want, atol=TOLERANCE, rtol=0)


def test_many_seeded_requests_are_repeatable(world: World):
    # Chunked prefill with seeds kills vLLM's engine on the CPU; these prompts are more than one batch.
    world.update(world.model_b)
    prompts = [[2 + (index + position) % 120 for position in range(150)] for index in range(60)]

    async def sample() -> list[list[Completion]]:
        return await asyncio.gather(
            *(
                world.client.generate(prompt, n=2, max_tokens=4, seed=7, stop_token_ids=[], timeout_s=120)
                for prompt in prompts
            )
        )

    first, second = world.run(sample()), world.run(sample())
    for left, right in zip(first, second, strict=True):
        assert [a.tokens.tolist() for a in left] == [a.tokens.tolist() for a in right]


def test_a_paused_server_answers_probes_and_nothing_else(world: World):
    world.update(world.model_b)
    before = world.run(world.client.prompt_logprobs(PROMPTS[2], timeout_s=60))

    async def probe_while_paused() -> np.ndarray:
        control = world.client.control()
        await control.pause()
        sampled = (await world.client.metrics())["vllm:generation_tokens_total"]
        waiting = asyncio.create_task(greedily(world.client, PROMPTS[0], 20))
        (request_id,) = world.client.probe_ids(1)
        body = {"request_id": request_id, "token_ids": [5], "sampling_params": {"max_tokens": 20}}
        url = f"{world.client.base_url}/inference/v1/generate"
        lying = asyncio.create_task(world.session.post(url, json=body, headers=world.client.authorization))
        probing = [world.client.prompt_logprobs(PROMPTS[2], timeout_s=30) for _ in range(80)]
        probed = await asyncio.gather(*probing)
        await asyncio.sleep(0.3)
        assert not waiting.done()
        assert not lying.done()
        # Each probe samples the one token without which vLLM takes no request.
        assert (await world.client.metrics())["vllm:generation_tokens_total"] - sampled == len(probing)
        await control.resume()
        assert len((await waiting).tokens) == 20
        assert (await lying).status == 200
        return np.stack(probed)

    for probed in world.run(probe_while_paused()):
        np.testing.assert_allclose(probed, before, atol=TOLERANCE, rtol=0)


def test_packed_answers_are_those_of_vllm_s_own_route(world: World):
    version = world.update(world.model_a).version
    parameters = {
        "n": 3, "max_tokens": 40, "temperature": 0.8, "seed": 7, "stop_token_ids": [EOS], "ignore_eos": True,
        "logprobs": 0, "detokenize": False,
    }  # fmt: skip

    async def both() -> tuple[Any, list[Completion]]:
        body = {"token_ids": PROMPTS[0], "sampling_params": parameters}
        url = f"{world.client.base_url}/inference/v1/generate"
        async with world.session.post(url, json=body, headers=world.client.authorization) as response:
            own = await response.json()
        packed = await world.client.generate(
            PROMPTS[0], n=3, max_tokens=40, temperature=0.8, seed=7, stop_token_ids=[EOS], timeout_s=60
        )
        return own, packed

    own, packed = world.run(both())
    assert len({tuple(answer.tokens.tolist()) for answer in packed}) == 3
    for choice, answer in zip(sorted(own["choices"], key=lambda found: found["index"]), packed, strict=True):
        assert (choice["token_ids"], choice["finish_reason"]) == (answer.tokens.tolist(), answer.finish_reason)
        logprobs = np.array([entry["logprob"] for entry in choice["logprobs"]["content"]], np.float32)
        np.testing.assert_allclose(answer.logprobs, logprobs, atol=1e-5, rtol=0)  # of other batches
        assert set(answer.policy_version.tolist()) == {version}


def test_answers_share_the_blocks_of_a_long_prompt_and_keep_their_log_probs(world: World):
    world.update(world.model_a)
    prompt = [int(token) for token in np.random.default_rng(3).integers(2, 128, 100)]

    async def hits() -> float:
        return (await world.client.metrics())["vllm:prefix_cache_hits_total"]

    async def sample() -> tuple[list[Completion], float]:
        before = await hits()
        answers = await world.client.generate(prompt, n=8, max_tokens=5, stop_token_ids=[], timeout_s=60)
        return answers, await hits() - before

    answers, shared = world.run(sample())
    assert shared == 7 * 96  # three blocks of 32 of the prompt's 100 tokens, by all but the first
    for answer in answers:
        expected = next_logprobs(world.model_a, [*prompt, *answer.tokens.tolist()])[len(prompt) - 1 :]
        np.testing.assert_allclose(answer.logprobs, expected, atol=TOLERANCE, rtol=0)


def test_a_client_that_goes_away_ends_its_answers(world: World):
    world.update(world.model_a)

    def ask() -> asyncio.Task[list[Completion]]:
        options: dict[str, Any] = dict(n=8, max_tokens=200, stop_token_ids=[], timeout_s=60)
        return asyncio.create_task(world.client.generate(PROMPTS[0], **options))

    async def leave() -> tuple[bool, float]:
        asking = ask()
        async with asyncio.timeout(30):
            while not await world.client.num_requests():
                if asking.done():  # answered between two looks
                    asking.result()
                    asking = ask()
                await asyncio.sleep(0.01)
            asking.cancel()
            while left := await world.client.num_requests():
                await asyncio.sleep(0.01)
        return asking.cancelled(), left

    assert world.run(leave()) == (True, 0)


def test_an_answer_cut_by_the_context_length_is_an_error(world: World):
    world.update(world.model_b)
    with pytest.raises(Rejected, match=r"cut at 6 of 40 tokens: raise serving.max_model_len"):
        world.run(world.client.generate([5] * 250, n=1, max_tokens=40, stop_token_ids=[], timeout_s=60))


def test_answers_in_flight_survive_and_every_token_belongs_to_its_version(world: World):
    models = {world.update(world.model_a).version: world.model_a}
    manifest = world.publish(world.model_b)
    models[manifest.version] = world.model_b
    outcome, answered = world.run(round_amid_answers(world, manifest))
    assert outcome.status == "updated", outcome
    assert outcome.num_running
    mixed = 0
    for prompt, answers in zip(PROMPTS * 3, answered, strict=True):
        assert not isinstance(answers, BaseException), answers
        for answer in answers:
            assert len(answer.tokens) == 200
            assert (np.diff(answer.policy_version) >= 0).all()
            mixed += len(set(answer.policy_version.tolist())) == 2
            for version in set(answer.policy_version.tolist()):
                want = next_logprobs(models[version], [*prompt, *answer.tokens.tolist()])[len(prompt) - 1 :]
                of_version = answer.policy_version == version
                np.testing.assert_allclose(answer.logprobs[of_version], want[of_version], atol=TOLERANCE, rtol=0)
    assert mixed >= 9, "the round came too early or too late to meet answers in flight"


@pytest.mark.parametrize(
    ("publish", "message"), BROKEN, ids=lambda value: getattr(value, "__name__", "") if callable(value) else ""
)
def test_a_bad_version_is_rejected_before_anything_is_touched(
    world: World, publish: Callable[[World], WeightManifest], message: str
):
    version = world.update(world.model_b).version
    before = world.run(world.client.prompt_logprobs(PROMPTS[2], timeout_s=60))
    outcome = world.run(world.replica.update(world.store, publish(world)))
    assert outcome.status == "rejected"
    assert outcome.error is not None
    assert re.search(message, outcome.error), outcome.error
    assert outcome.num_running is None, "the server was paused"
    assert world.run(world.client.weight_version()) == version
    np.testing.assert_array_equal(world.run(world.client.prompt_logprobs(PROMPTS[2], timeout_s=60)), before)
    assert not world.run(world.client.is_paused())
