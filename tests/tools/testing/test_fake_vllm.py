"""The fake engine keeps vLLM's contract: one list of checks for both, and a forward pass that is the model's."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest
from aiohttp import web

from serving_bridge.access.gate import Gate
from serving_bridge.fleet.weight_round import run_round
from serving_bridge.vllm.answers import Superseded
from serving_bridge.vllm.client import Aborted, Failed, Malformed, Rejected, Unreachable, VllmClient
from serving_bridge.vllm.server_checks import claim_port
from serving_bridge.weights.store import WeightStore
from serving_bridge.weights.writer import VersionWriter
from tests.support.broken_versions import flip_bit, rewrite
from tests.support.weight_world import (
    EOS,
    PROMPTS,
    SETTINGS,
    TOLERANCE,
    World,
    golden_of,
    greedily,
    greedy,
    make_model,
    next_logprobs,
    tensors_of,
)
from tools.testing.fake_vllm.core import EngineSettings
from tools.testing.fake_vllm.engine import Engine
from tools.testing.fake_vllm.qwen3 import Qwen3, log_softmax
from tools.testing.fake_vllm.server import DISTURB, application
from tools.testing.fake_vllm.weights import ModelWeights, Worker

CONTROL = "c" * 64


@dataclass
class Bench:
    """A server of weights A, and all that a check may need beside it."""

    client: VllmClient
    session: aiohttp.ClientSession
    store: WeightStore
    model_a: Any
    model_b: Any
    long_tokens: int

    async def fill(self) -> list[asyncio.Task[Any]]:
        """Long answers that are being sampled."""
        options: dict[str, Any] = dict(n=1, max_tokens=self.long_tokens, stop_token_ids=[], timeout_s=120)
        tasks = [asyncio.create_task(self.client.generate(prompt, seed=1, **options)) for prompt in PROMPTS]
        while (await self.client.metrics())["vllm:num_requests_running"] < len(PROMPTS):
            await asyncio.sleep(0.01)
        return tasks

    def publish(self, model: Any, golden: Any = None) -> Any:
        return VersionWriter(self.store).publish(tensors_of(model).items(), step=0, golden=golden or golden_of(model))


# What holds of either server. Each check leaves the server serving, unpaused, on weights A or B.


async def answers_are_exact(bench: Bench) -> None:
    await bench.client.control().name_version(1)
    got = await greedily(bench.client, PROMPTS[1], 6)
    assert got.tokens.tolist() == greedy(bench.model_a, PROMPTS[1], 6)
    assert (got.policy_version.tolist(), got.finish_reason) == ([1] * 6, "length")
    probed = await bench.client.prompt_logprobs(PROMPTS[2], timeout_s=60)
    np.testing.assert_allclose(probed, next_logprobs(bench.model_a, PROMPTS[2]), atol=TOLERANCE, rtol=0)
    options: dict[str, Any] = dict(max_tokens=6, greedy=True, stop_token_ids=[], timeout_s=60)
    for prompt, answer in zip(PROMPTS, await bench.client.generate_each(PROMPTS, **options), strict=True):
        assert answer.tokens.tolist() == greedy(bench.model_a, prompt, 6)
        expected = next_logprobs(bench.model_a, [*prompt, *answer.tokens.tolist()])[len(prompt) - 1 :]
        np.testing.assert_allclose(answer.logprobs, expected, atol=TOLERANCE, rtol=0)
    with pytest.raises(Rejected, match="vocabulary"):
        await bench.client.generate_each([PROMPTS[0], [500]], **options)


async def samples_follow_the_seed_and_say_their_logprobs(bench: Bench) -> None:
    async def sample(seed: int) -> list[list[int]]:
        options: dict[str, Any] = dict(n=3, max_tokens=5, stop_token_ids=[], timeout_s=60, temperature=0.7, seed=seed)
        answers = await bench.client.generate(PROMPTS[0], **options)
        for answer in answers:
            whole = [*PROMPTS[0], *answer.tokens.tolist()]
            expected = next_logprobs(bench.model_a, whole, temperature=0.7)[len(PROMPTS[0]) - 1 :]
            np.testing.assert_allclose(answer.logprobs, expected, atol=TOLERANCE, rtol=0)
        return [answer.tokens.tolist() for answer in answers]

    first = await sample(7)
    assert await sample(7) == first
    assert await sample(8) != first
    assert len({tuple(tokens) for tokens in first}) == 3


async def a_stop_token_ends_an_answer_and_stays_in_it(bench: Bench) -> None:
    stop = greedy(bench.model_a, PROMPTS[0], 4)[-1]
    (answer,) = await bench.client.generate(
        PROMPTS[0], n=1, max_tokens=50, greedy=True, stop_token_ids=[stop], timeout_s=60
    )
    assert (answer.finish_reason, answer.tokens[-1]) == ("stop", stop)
    assert stop not in answer.tokens[:-1]


async def what_does_not_fit_is_cut_or_refused(bench: Bench) -> None:
    long = PROMPTS[2] * 6
    with pytest.raises(Rejected, match="cut"):
        await bench.client.generate(long, n=1, max_tokens=257 - len(long), stop_token_ids=[], timeout_s=60)
    with pytest.raises(Rejected):
        await bench.client.generate([5, 128], n=1, max_tokens=4, stop_token_ids=[], timeout_s=60)


async def a_pause_holds_answers_and_lets_whole_batches_of_probes_through(bench: Bench) -> None:
    sampling = await bench.fill()
    await bench.client.control().pause()
    assert await bench.client.is_paused()
    assert await bench.client.is_healthy()
    first, second = bench.client.probe_ids(2)
    alone = asyncio.create_task(bench.client.prompt_logprobs(PROMPTS[2], timeout_s=60, request_id=first))
    await asyncio.sleep(0.3)
    assert not alone.done()
    await bench.client.prompt_logprobs(PROMPTS[2], timeout_s=60, request_id=second)
    await alone
    assert not any(task.done() for task in sampling)
    await bench.client.control().resume()
    for task in sampling:
        assert len((await task)[0].tokens) == bench.long_tokens
    assert await bench.client.num_requests() == 0


async def aborted_answers_come_as_such(bench: Bench) -> None:
    sampling = await bench.fill()
    await bench.client.control().abort_all()
    outcomes = await asyncio.gather(*sampling, return_exceptions=True)
    assert all(isinstance(outcome, Aborted) for outcome in outcomes)


async def update_sessions_follow_vllms_rules(bench: Bench) -> None:
    control, manifest = bench.client.control(), bench.publish(bench.model_b)
    before = await bench.client.weight_version()
    found = await control.swap(manifest, "nobody", applies=True)
    assert not found.is_applied
    assert "start_weight_update" in found.error
    await control.start_update()
    with pytest.raises(Failed, match="active"):
        await bench.client.control().start_update()
    await bench.client.control().end_stuck_update()
    await bench.client.control().start_update()
    found = await control.swap(manifest, "nobody", applies=True)
    assert not found.is_applied
    assert "does not hold" in found.error
    assert await bench.client.is_paused()
    assert await bench.client.weight_version() == before
    await control.resume()


async def one_round_at_a_time_holds_the_lease(bench: Bench) -> None:
    manifest = bench.publish(bench.model_b)
    arguments = (manifest.version, manifest.content_sha256)
    await bench.client.control().stage(*arguments, "one", 60.0)
    with pytest.raises(Failed, match="round one"):
        await bench.client.control().stage(*arguments, "two", 60.0)
    while (await bench.client.worker_status("one")).state == "reading":
        await asyncio.sleep(0.01)
    await bench.client.control().release("one")


async def a_round_that_another_followed_changes_nothing_however_late_it_asks(bench: Bench) -> None:
    manifest, late, last = bench.publish(bench.model_b), bench.client.control(), bench.client.control()
    for control in (late, last):
        await control.stage(manifest.version, manifest.content_sha256, "controller", 60.0)
        while (await bench.client.worker_status("controller")).state == "reading":
            await asyncio.sleep(0.01)
    before = await bench.client.weight_version()
    for ask in (late.pause, late.abort_all, late.start_update, late.end_stuck_update, late.resume):
        with pytest.raises(Superseded, match="followed by"):
            await ask()
    swap = late.swap(manifest, "controller", applies=False)
    for asked in (late.name_version(99), late.serve(99), late.release("controller"), swap):
        with pytest.raises(Superseded, match="followed by"):
            await asked
    with pytest.raises(Superseded, match="followed by"):
        await late.stage(manifest.version, manifest.content_sha256, "controller", 60.0)
    assert await bench.client.weight_version() == before
    assert not await bench.client.is_paused()
    await last.release("controller")


async def a_round_changes_answers_in_flight_with_spans(bench: Bench) -> None:
    await bench.client.control().name_version(0)
    sampling = await bench.fill()
    manifest = bench.publish(bench.model_b)
    outcome = await run_round(bench.client, manifest, SETTINGS)
    assert outcome.status == "updated", outcome
    for task in sampling:
        (answer,) = await task
        assert sorted(set(answer.policy_version.tolist())) == [0, manifest.version]
        assert (np.diff(answer.policy_version) >= 0).all()
    got = await greedily(bench.client, PROMPTS[1], 6)
    assert got.tokens.tolist() == greedy(bench.model_b, PROMPTS[1], 6)


async def damaged_files_are_noticed_and_nothing_changes(bench: Bench) -> None:
    before = await bench.client.weight_version()
    manifest = flip_bit(bench)  # type: ignore[arg-type]
    outcome = await run_round(bench.client, manifest, SETTINGS)
    assert (outcome.status, outcome.store_damaged) == ("rejected", True)
    assert await bench.client.weight_version() == before
    assert not await bench.client.is_paused()


async def users_get_what_the_checked_manifest_says_and_nothing_else(bench: Bench) -> None:
    """The stored manifest changes after the fleet read it; the tensors are the same by its own hashes."""
    before = await bench.client.weight_version()
    manifest = bench.publish(bench.model_b)
    rewrite(bench, manifest, step=manifest.step + 1)  # type: ignore[arg-type]
    outcome = await run_round(bench.client, manifest, SETTINGS.model_copy(update={"follow": "aliases"}))
    assert (outcome.status, outcome.store_damaged) == ("rejected", True)
    assert "it was changed after it was checked" in str(outcome.error)
    assert await bench.client.weight_version() == before
    rewrite(bench, manifest)  # type: ignore[arg-type]
    outcome = await run_round(bench.client, manifest, SETTINGS.model_copy(update={"follow": "aliases"}))
    assert outcome.status == "updated", outcome


async def other_weights_than_the_golden_prompts_are_never_sampled(bench: Bench) -> None:
    """Leaves weights A behind, proven again."""
    sampling = await bench.fill()
    wrong = bench.publish(bench.model_b, golden_of(bench.model_a))
    outcome = await run_round(bench.client, wrong, SETTINGS)
    assert outcome.status == "unfit", outcome
    assert all(isinstance(e, Aborted) for e in await asyncio.gather(*sampling, return_exceptions=True))
    assert (await bench.client.is_paused(), await bench.client.weight_version()) == (True, None)
    outcome = await run_round(bench.client, bench.publish(bench.model_a), SETTINGS)
    assert outcome.status == "updated", outcome


CHECKS = (
    answers_are_exact,
    samples_follow_the_seed_and_say_their_logprobs,
    a_stop_token_ends_an_answer_and_stays_in_it,
    what_does_not_fit_is_cut_or_refused,
    a_pause_holds_answers_and_lets_whole_batches_of_probes_through,
    aborted_answers_come_as_such,
    update_sessions_follow_vllms_rules,
    one_round_at_a_time_holds_the_lease,
    a_round_that_another_followed_changes_nothing_however_late_it_asks,
    a_round_changes_answers_in_flight_with_spans,
    damaged_files_are_noticed_and_nothing_changes,
    users_get_what_the_checked_manifest_says_and_nothing_else,
    other_weights_than_the_golden_prompts_are_never_sampled,
)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, Any]:
    folder = tmp_path_factory.mktemp("models")
    return folder / "a", make_model(folder / "a", 0), make_model(folder / "b", 1)


@asynccontextmanager
async def fake_server(folder: Path, store: Path) -> AsyncIterator[tuple[VllmClient, aiohttp.ClientSession]]:
    worker = Worker(ModelWeights(folder), root=store, clock=asyncio.get_running_loop().time)
    settings, port = EngineSettings(max_model_len=256, token_s=0.02), claim_port("127.0.0.1", 0)
    engine = Engine(worker, settings, draws=random.Random(0), control_token=CONTROL)
    gate = Gate(f"http://127.0.0.1:{port}", CONTROL, "i" * 64, also=[DISTURB])
    runner = web.AppRunner(application(engine, gate), handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    async with aiohttp.ClientSession() as session:
        client = VllmClient(f"http://127.0.0.1:{port}", session, control_timeout_s=10, token=CONTROL)
        await client.control().name_version(0)
        try:
            yield client, session
        finally:
            await runner.cleanup()


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_fake_engine_passes_each_check(check: Callable[[Bench], Awaitable[None]], models: Any, tmp_path: Path):
    folder, model_a, model_b = models

    async def run() -> None:
        async with fake_server(folder, tmp_path) as (client, session), asyncio.timeout(60):
            await check(Bench(client, session, WeightStore(tmp_path, "run"), model_a, model_b, 20))

    asyncio.run(run())


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    from tests.support.weight_world import running_world

    with running_world(tmp_path_factory.mktemp("world")) as world:
        yield world


@pytest.mark.soak
def test_vllm_passes_the_same_checks(world: World):
    pytest.importorskip("vllm", reason="vLLM is not installed")
    bench = Bench(world.client, world.session, world.store, world.model_a, world.model_b, 200)
    for check in CHECKS:
        if check is not answers_are_exact:
            world.update(world.model_a)
        world.run(check(bench))


def test_disturbances_do_what_they_say(models: Any, tmp_path: Path):
    folder = models[0]

    async def run() -> None:
        async with fake_server(folder, tmp_path) as (served, session):
            url, client = served.base_url, VllmClient(served.base_url, session, control_timeout_s=0.5, token=CONTROL)
            await client.control().name_version(1)
            generate: Any = dict(n=1, max_tokens=3, stop_token_ids=[EOS], timeout_s=10)

            async def disturb(**fields: Any) -> None:
                async with session.post(f"{url}/disturb", json=fields, headers=client.authorization) as response:
                    assert response.status == 200

            await disturb(garbage=1)
            with pytest.raises(Malformed):
                await client.generate(PROMPTS[0], **generate)
            await disturb(aborts=1)
            with pytest.raises(Aborted):
                await client.generate(PROMPTS[0], **generate)
            await disturb(failures={"/pause": 1})
            with pytest.raises(Failed):
                await client.control().pause()
            await disturb(hangs=True)
            assert await client.is_healthy()
            with pytest.raises(Unreachable, match="no answer within"):
                await client.generate(PROMPTS[0], **generate | {"timeout_s": 0.3})
            with pytest.raises(Unreachable, match="no answer within"):
                await client.control().pause()
            await disturb()
            async with asyncio.timeout(30):
                while not await client.is_paused():  # what was given up on is carried out all the same
                    await asyncio.sleep(0.01)
            await client.control().resume()
            assert len((await client.generate(PROMPTS[0], **generate))[0].tokens) >= 1

    asyncio.run(run())


def test_the_forward_pass_agrees_with_transformers_and_the_learner(models: Any):
    from jax import numpy as jnp

    from learner_jax.contracts.model import read_model_config
    from learner_jax.models import merge, token_logprobs
    from learner_jax.models.hf_folder import load_parameters

    folder, model, _ = models
    config = read_model_config(folder)
    ours = Qwen3(config, tensors_of(model))
    tokens = np.random.default_rng(0).integers(2, 128, (2, 24))
    logprobs = log_softmax(ours.logits(tokens))
    for row in range(2):
        expected = next_logprobs(model, tokens[row].tolist())
        got = logprobs[row, np.arange(23), tokens[row, 1:]]
        assert np.abs(got - expected).max() < TOLERANCE
    stats = token_logprobs(merge(config, load_parameters(folder, config)), jnp.asarray(tokens), temperature=1.0)
    learned = np.asarray(stats.logprobs)
    expected = np.take_along_axis(logprobs[:, :-1], tokens[:, 1:, None], -1)[..., 0]
    assert np.abs(learned[:, -23:] - expected).max() < TOLERANCE
