"""The gateway over a real vLLM server: OpenAI's own clients, log-probs, a client that leaves, a swap amid an answer."""

from __future__ import annotations

import asyncio
import itertools
import json
import shutil
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest

from serving_bridge.gateway import Gateway, listener
from serving_bridge.recordings import Recorder, ids_of, path_of, versions_of
from serving_bridge.routing import ReplicaRegistry
from serving_bridge.settings import GatewaySettings
from tests.support.letters import letters
from tests.support.node_packages import node_command
from tests.support.recording_world import Recordings
from tests.support.schema_fuzzer import fuzzed, schemathesis
from tests.support.weight_world import EOS, SETTINGS, TOLERANCE, World

pytest.importorskip("vllm", reason="vLLM is not installed")
pytestmark = pytest.mark.slow

#: one world for all tests on real servers: starting it takes longer than they do
pytest_plugins = ["tests.support.weight_fixtures"]

MESSAGES: Any = [{"role": "user", "content": "What is 5 + 7?"}]
CLIENT = Path(__file__).parents[2] / "support" / "openai_client.mjs"


def played(
    world: World,
    folder: Path,
    version: int,
    test: Callable[[str], Awaitable[None]],
    recorder: Recorder | None = None,
) -> None:
    """Runs a test with the URL of a gateway over the world's server."""
    tokenizer = letters(folder / "letters")
    registry = ReplicaRegistry(folder / "replicas")
    replica = world.replica

    def report() -> None:
        registry.report("r0", url=replica.base_url, state="healthy", version=version, step=0, start=replica.start_id)

    async def alive() -> None:
        while True:
            await asyncio.sleep(5.0)
            report()

    report()
    stopping: list[bool] = []
    gateway = Gateway(
        GatewaySettings(port=0, drain_timeout_s=1.0),
        tokenizer,
        registry,
        world.keys,
        name="gateway-0",
        max_context=SETTINGS.max_model_len,
        log=lambda *_, **__: None,
        should_stop=lambda: bool(stopping),
        recorder=recorder,
    )

    async def play() -> None:
        with listener("127.0.0.1", 0, shared=False) as bound:
            url = f"http://127.0.0.1:{bound.getsockname()[1]}/v1"
            running, reporting = asyncio.ensure_future(gateway.run(bound)), asyncio.ensure_future(alive())
            try:
                await asyncio.sleep(0.1)
                await test(url)
            finally:
                reporting.cancel()
                stopping.append(True)
                await running

    world.run(play())


def test_openais_python_client(world: World, tmp_path: Path) -> None:
    version = world.update(world.model_a).version

    async def test(url: str) -> None:
        async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
            assert [model.id async for model in client.models.list()] == ["policy"]
            options: dict[str, Any] = {"model": "policy", "temperature": 0, "max_tokens": 20, "seed": 3}
            whole = await client.chat.completions.create(messages=MESSAGES, logit_bias={str(EOS): -100}, **options)
            assert whole.usage is not None
            assert whole.usage.completion_tokens == 20
            assert (whole.choices[0].finish_reason, whole._request_id) == ("length", whole.id)
            stream = await client.chat.completions.create(
                messages=MESSAGES, stream=True, stream_options={"include_usage": True}, **options,
                logit_bias={str(EOS): -100},
            )  # fmt: skip
            chunks = [chunk async for chunk in stream]
            assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == (
                whole.choices[0].message.content
            )
            assert chunks[-1].usage == whole.usage
            weir: Any = whole.model_dump()["weir"]
            assert weir["policy_versions"] == [[{"version": version, "start": 0, "end": 20}]]
            text = await client.completions.create(prompt="What", model="policy", max_tokens=5, n=2)
            assert [choice.index for choice in text.choices] == [0, 1]
            with pytest.raises(openai.BadRequestError) as refused:
                await client.chat.completions.create(messages=MESSAGES, model="policy", max_tokens=-1)
            assert refused.value.code == "integer_below_min_value"
            with pytest.raises(openai.NotFoundError):
                await client.embeddings.create(input="x", model="policy")

    played(world, tmp_path, version, test)


def test_log_probs_are_those_of_the_sampled_distribution(world: World, tmp_path: Path) -> None:
    version = world.update(world.model_a).version

    async def test(url: str) -> None:
        async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
            answer = await client.chat.completions.create(
                messages=MESSAGES, model="policy", seed=3, n=8, max_tokens=12, logprobs=True, top_logprobs=3
            )
        prompt = [*map(ord, "u:What is 5 + 7?"), EOS, *map(ord, "a:")]
        assert answer.usage is not None
        assert answer.usage.prompt_tokens == len(prompt)
        compared = 0
        for choice in answer.choices:
            told: Any = choice.logprobs
            # The ids of other tokens can't be told from their texts.
            known = list(itertools.takewhile(lambda entry: len(entry.token) == 1, told.content))
            if not known:
                continue
            ids = [*prompt, *(ord(entry.token) for entry in known)]
            want = (await world.client.prompt_logprobs(ids, timeout_s=60))[len(prompt) - 1 :]
            np.testing.assert_allclose([entry.logprob for entry in known], want, atol=TOLERANCE, rtol=0)
            assert all(len(entry.top_logprobs) == 3 for entry in known)
            compared += len(known)
        assert compared > 8

    played(world, tmp_path, version, test)


def test_recorded_ids_and_log_probs_are_the_engines(world: World, tmp_path: Path) -> None:
    """Two turns with a branch, recorded; the server computes the log-probs of the whole path again."""
    version = world.update(world.model_a).version
    recordings = Recordings(letters(tmp_path / "own"), tmp_path)

    async def test(url: str) -> None:
        async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
            options: dict[str, Any] = {"model": "policy", "max_tokens": 12, "store": True}
            first = await client.chat.completions.create(messages=MESSAGES, seed=3, n=2, **options)
            for choice in first.choices:
                said = {"role": "assistant", "content": choice.message.content}
                more: Any = [*MESSAGES, said, {"role": "user", "content": "more"}]
                answer: Any = await client.chat.completions.create(messages=more, temperature=0.6, seed=5, **options)
                assert answer.model_dump()["weir"]["recorded"] == "continued"

    played(world, tmp_path, version, test, recordings.recorder())
    (kept,) = recordings.store.each()
    assert len(kept.answers) == 4

    async def compare() -> None:
        for answer in kept.answers[:2]:  # at temperature 1, which the server's log-probs of a prompt are of
            ids: list[int] = []
            for turn, at in path_of(kept, answer.answer_id):
                assert turn.tokens is not None
                assert at.tokens is not None
                ids += [*ids_of(turn.tokens), *ids_of(at.tokens)]
            assert answer.logprobs is not None
            got = np.frombuffer(answer.logprobs, "<f4")
            want = (await world.client.prompt_logprobs(ids, timeout_s=60))[-len(got) :]
            np.testing.assert_allclose(got, want, atol=1e-4, rtol=0)
            assert set(versions_of(answer).tolist()) == {version}

    world.run(compare())


def test_openais_node_client(world: World, tmp_path: Path) -> None:
    command = node_command("openai@7")
    version = world.update(world.model_a).version

    async def test(url: str) -> None:
        script = shutil.copy(CLIENT, command.folder / "client.mjs")
        process = await asyncio.create_subprocess_exec(
            command.node, script, url, "none", "policy", cwd=command.folder, stdout=asyncio.subprocess.PIPE
        )
        output, _ = await asyncio.wait_for(process.communicate(), 120)
        found = json.loads(output)
        assert process.returncode == 0
        assert found["models"] == ["policy"]
        assert found["text"] == found["whole"] == found["final"]
        assert found["requestId"] == found["weir"]["response_id"]
        assert found["usage"]["completion_tokens"] > 0
        assert found["refusal"] == {
            "status": 400, "code": "integer_below_min_value", "param": "max_tokens", "name": "BadRequestError",
        }  # fmt: skip

    played(world, tmp_path, version, test)


def test_a_client_that_leaves_ends_its_request_at_the_server(world: World, tmp_path: Path) -> None:
    version = world.update(world.model_a).version

    async def test(url: str) -> None:
        async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
            stream = await client.chat.completions.create(
                messages=MESSAGES, model="policy", stream=True, n=8, max_tokens=230, logit_bias={str(EOS): -100}
            )
            await anext(aiter(stream))
            while await world.client.num_requests() == 0:
                await asyncio.sleep(0.005)
            await stream.close()
            left_s = time.monotonic()
            while await world.client.num_requests():
                assert time.monotonic() - left_s < 1.0, "the server still samples for nobody"
                await asyncio.sleep(0.02)
            metrics = await world.client.metrics()
            assert metrics["vllm:num_requests_running"] == 0

    played(world, tmp_path, version, test)


def test_an_answer_that_lives_through_a_swap_has_both_versions(world: World, tmp_path: Path) -> None:
    first = world.update(world.model_a).version
    second = world.publish(world.model_b)

    async def test(url: str) -> None:
        async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
            stream = await client.chat.completions.create(
                messages=MESSAGES, model="policy", stream=True, max_tokens=230, logit_bias={str(EOS): -100}
            )
            chunks = []
            swapping: asyncio.Future[Any] | None = None
            async for chunk in stream:
                chunks.append(chunk)
                if len(chunks) == 5:
                    swapping = asyncio.ensure_future(world.replica.update(world.store, second))
            assert swapping is not None
            assert (await swapping).status == "updated"
            (spans,) = chunks[-1].model_dump()["weir"]["policy_versions"]
            assert [span["version"] for span in spans] == [first, second.version]
            assert (spans[0]["start"], spans[-1]["end"]) == (0, 230)

    played(world, tmp_path, first, test)


def test_a_schema_that_vllm_can_not_compile_is_the_clients_fault(world: World, tmp_path: Path) -> None:
    """By these words alone it differs from an engine that died; see `upstream`."""
    version = world.update(world.model_a).version
    schema: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"$ref": "#"}}}

    async def test(url: str) -> None:
        async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
            for _ in range(4):
                with pytest.raises(openai.BadRequestError) as refused:
                    await client.chat.completions.create(model="policy", messages=MESSAGES, response_format=schema)
                assert refused.value.param == "response_format"

    played(world, tmp_path, version, test)


@pytest.mark.soak
@pytest.mark.timeout(1500)
def test_schemathesis_finds_nothing_over_vllm(world: World, tmp_path: Path) -> None:
    program = schemathesis(tmp_path / "venv")
    version = world.update(world.model_a).version

    async def test(url: str) -> None:
        status, output = await fuzzed(program, tmp_path, url.removesuffix("/v1"), 30)
        assert status == 0, output[-6000:]

    played(world, tmp_path, version, test)
