"""From the optimizer to real vLLM: after many updates it answers as a new server on the converted model.

For the soak: all families, with tied and untied heads, bfloat16 and tensor parallelism, fifty updates each. The default
suite has test_sync_in_process.py, which asks no server.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest

from serving_bridge.fleet.further_host import FurtherHost
from serving_bridge.fleet.meeting import MeetingPoint
from serving_bridge.fleet.replica import Replica
from serving_bridge.settings.serving import ServingSettings
from serving_bridge.vllm.client import Completion
from tests.support.sync_learner import NUM_UPDATES, PROMPTS, Learner, make_model
from tests.support.weight_world import greedily

pytest.importorskip("vllm", reason="vLLM is not installed")
pytestmark = [pytest.mark.slow, pytest.mark.soak]

NUM_UPDATES_SHORT = 5
#: float32 sums in different orders, nats
TOLERANCE = 1e-4


async def update(replica: Replica, learner: Learner) -> Any:
    manifest = await asyncio.to_thread(learner.publish)
    outcome = await replica.update(learner.store, manifest)
    assert outcome.status == "updated", outcome
    return manifest


async def assert_same_answers(left: Replica, right: Replica) -> None:
    for prompt in PROMPTS:
        got, want = [await greedily(replica.client, prompt, 60) for replica in (left, right)]
        np.testing.assert_array_equal(got.tokens, want.tokens)
        np.testing.assert_allclose(got.logprobs, want.logprobs, atol=TOLERANCE, rtol=0)
        if (
            left.settings.tensor_parallel_size == left.settings.pipeline_parallel_size == 1
        ):  # the same kernels and weights, bit by bit
            np.testing.assert_array_equal(got.logprobs, want.logprobs)


async def start(
    name: str,
    folder: Path,
    session: aiohttp.ClientSession,
    logs: Path,
    dtype: str,
    *,
    workers: int = 1,
    stages: int = 1,
    hosts: int = 1,
) -> Replica:
    settings = ServingSettings(
        tensor_parallel_size=workers,
        pipeline_parallel_size=stages,
        hosts_per_replica=hosts,
        dtype=dtype,
        max_model_len=1024,
        max_num_seqs=16,
        start_timeout_s=900,
        probe_tolerance=TOLERANCE if dtype == "float32" else None,
        # What is left of a prompt whose first block was kept is added up in another order.
        engine_args={"enable-prefix-caching": False},
    )
    store, log_path = logs / "weights", logs / f"{name}.log"
    point = MeetingPoint(store / "replicas", name) if hosts > 1 else None
    replica = Replica(name, folder, settings, session, log_path=log_path, store=store, point=point)
    await replica.start()
    return replica


@contextmanager
def further_host(folder: Path, logs: Path, **sizes: int) -> Iterator[list[str]]:
    """The second host of the replica "updated", on this machine; yields the events that it logs."""
    settings = ServingSettings(max_model_len=1024, max_num_seqs=16, hosts_per_replica=2, **sizes)
    events: list[str] = []
    host = FurtherHost(
        settings,
        MeetingPoint(logs / "weights" / "replicas", "updated"),
        number=1,
        model_dir=folder,
        store=logs / "weights",
        log_path=logs / "updated.1.log",
        log=lambda event, **_: events.append(event),
    )
    over = threading.Event()
    thread = threading.Thread(target=host.run, args=[over.is_set])
    thread.start()
    try:
        yield events
    finally:
        over.set()
        thread.join(60)
        assert not thread.is_alive()


async def prove(
    tmp_path: Path,
    family: str,
    *,
    tied: bool,
    dtype: str = "float32",
    whole: bool = True,
    **sizes: int,
) -> None:
    folder = tmp_path / "model"
    make_model(folder, family, tied=tied)
    learner = Learner(folder, tmp_path, dtype)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        replica = await start("updated", folder, session, tmp_path, dtype, **sizes)
        try:
            assert (await update(replica, learner)).format == "full"
            for step in range(NUM_UPDATES if whole else NUM_UPDATES_SHORT):
                await asyncio.to_thread(learner.step, step)
                assert (await update(replica, learner)).format == "sparse"
            if whole:
                await compare(learner, folder, tmp_path / "converted", replica, session)
            if dtype == "float32":  # transformers and vLLM do not round bfloat16 alike
                await answers_across_updates(learner, folder, replica)
            learner.publisher.close()
            learner.start_publishing()
            await asyncio.to_thread(learner.step, NUM_UPDATES)
            assert (await update(replica, learner)).format == "full"
            await compare(learner, folder, tmp_path / "converted_again", replica, session)
        finally:
            await replica.stop()
            learner.close()


async def compare(learner: Learner, folder: Path, out: Path, replica: Replica, session: aiohttp.ClientSession) -> None:
    """The replica is a server that was started on the learner's converted checkpoint."""
    await asyncio.to_thread(learner.convert, folder, out)
    fresh = await start("fresh", out, session, out.parent, learner.engine.settings.publish_dtype)
    try:
        await fresh.client.control().name_version(1)
        await assert_same_answers(replica, fresh)
    finally:
        await fresh.stop()


async def answers_across_updates(learner: Learner, folder: Path, replica: Replica) -> None:
    """Answers in flight over three updates: each token's log-prob is that of the version its span names."""
    recomputed = {learner.version: recomputed_by(learner, folder)}
    manifests = []
    for step in range(3):
        learner.step(1000 + step)
        manifests.append(learner.publish())
        recomputed[learner.version] = recomputed_by(learner, folder)
    running = [
        asyncio.create_task(
            replica.client.generate(prompt, n=4, max_tokens=900, seed=1, stop_token_ids=[], timeout_s=900)
        )
        for prompt in PROMPTS
    ]
    for manifest in manifests:
        await asyncio.sleep(0.1)
        outcome = await replica.update(learner.store, manifest)
        assert (outcome.status, outcome.num_running) == ("updated", 12)
    answers: list[tuple[Sequence[int], Completion]] = []
    for prompt, task in zip(PROMPTS, running, strict=True):
        answers += [(prompt, answer) for answer in await task]
    spanned = [sorted(set(answer.policy_version.tolist())) for _, answer in answers]
    assert max(len(versions) for versions in spanned) == 4, spanned
    for prompt, answer in answers:
        assert (np.diff(answer.policy_version) >= 0).all()
        for version in set(answer.policy_version.tolist()):
            sampled = answer.policy_version == version
            want = recomputed[version]([*prompt, *answer.tokens.tolist()])[len(prompt) - 1 :]
            np.testing.assert_allclose(answer.logprobs[sampled], want[sampled], atol=TOLERANCE, rtol=0)


def recomputed_by(learner: Learner, folder: Path) -> Any:
    """The log-probs of transformers under the version published last."""
    import torch
    import transformers

    from serving_bridge.vllm_plugin.live import tensor_of
    from serving_bridge.weights.reader import read_version

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    state = {name: tensor_of(tensor) for name, tensor in read_version(learner.store, learner.version).items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected
    assert set(missing) <= {"lm_head.weight"}
    model.tie_weights()

    def logprobs(tokens: Sequence[int]) -> np.ndarray:
        with torch.no_grad():
            logits = model(torch.tensor([list(tokens)])).logits[0, :-1].double()
        return torch.log_softmax(logits, -1)[torch.arange(len(tokens) - 1), torch.tensor(list(tokens[1:]))].numpy()

    return logprobs


def test_after_many_updates_the_server_is_a_fresh_one_on_the_converted_model(tmp_path: Path):
    asyncio.run(prove(tmp_path, "Qwen3", tied=True, whole=False))


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("family", ["Llama", "Qwen2", "Qwen3"])
def test_every_family(tmp_path: Path, family: str, tied: bool):
    asyncio.run(prove(tmp_path, family, tied=tied))


def test_tensor_parallel_workers(tmp_path: Path):
    asyncio.run(prove(tmp_path, "Llama", tied=False, workers=2))


def test_a_pipeline_of_workers(tmp_path: Path):
    asyncio.run(prove(tmp_path, "Llama", tied=False, stages=2))


@pytest.mark.parametrize("sizes", [{"workers": 2}, {"stages": 2}], ids=["tensor", "pipeline"])
def test_a_replica_of_two_hosts(tmp_path: Path, sizes: dict[str, int]):
    """Both hosts are this machine; they meet over its loopback."""
    told = {"tensor_parallel_size": sizes.get("workers", 1), "pipeline_parallel_size": sizes.get("stages", 1)}
    make_model(tmp_path / "model", "Llama", tied=False)
    with further_host(tmp_path / "model", tmp_path, **told) as events:
        asyncio.run(prove(tmp_path, "Llama", tied=False, whole=False, hosts=2, **sizes))
    assert events == ["part_started"]


def test_bfloat16(tmp_path: Path):
    asyncio.run(prove(tmp_path, "Qwen3", tied=False, dtype="bfloat16"))
