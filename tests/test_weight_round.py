"""Weight rounds against real vLLM servers: what is served is exactly what was published, or what was served before.

Two servers run on the CPU: `replica`, which starts on weights A and is updated, and a fresh one on weights B.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import aiohttp
import ml_dtypes
import msgspec
import numpy as np
import pytest

from learner_jax.contracts import GoldenPrompt, WeightManifest, encode_manifest
from serving_bridge.config import ServingSettings
from serving_bridge.guard import descendants
from serving_bridge.replica import Replica
from serving_bridge.vllm_client import Aborted, Completion, Rejected, Unversioned, VllmClient
from serving_bridge.weight_round import RoundOutcome, run_round
from serving_bridge.weight_store import MANIFEST_NAME, WEIGHTS_NAME, WeightStore

pytest.importorskip("vllm", reason="vLLM is not installed")
pytestmark = pytest.mark.slow

T = TypeVar("T")
SETTINGS = ServingSettings(max_model_len=256, max_num_seqs=64, start_timeout_s=300, probe_tolerance=1e-4)
#: vLLM and transformers add up float32 in different orders
TOLERANCE = 1e-4
PROMPTS = ([5, 6, 7], [9, 8, 70, 71, 100, 3], list(range(20, 60)))
EOS = 1


def make_model(folder: Path, seed: int) -> Any:
    """A random Qwen3 with a tied head and a tokenizer with one token per id; returns it, saved to `folder`."""
    import torch
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=128,
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        tie_word_embeddings=True,
        max_position_embeddings=512,
        initializer_range=0.2,
        bos_token_id=None,
        eos_token_id=EOS,
        pad_token_id=0,
    )
    model = Qwen3ForCausalLM(config).float().eval()
    model.save_pretrained(folder)
    vocabulary = {"<pad>": 0, "<eos>": EOS} | {chr(0x100 + index): index for index in range(2, 128)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>").save_pretrained(folder)
    return model


def next_logprobs(model: Any, tokens: Sequence[int], temperature: float = 1.0) -> np.ndarray:
    """float64[T-1], log p(tokens[t+1] | tokens[:t+1]) by transformers."""
    import torch

    with torch.no_grad():
        logits = model(torch.tensor([list(tokens)])).logits[0, :-1].double() / temperature
    return torch.log_softmax(logits, -1)[torch.arange(len(tokens) - 1), torch.tensor(list(tokens[1:]))].numpy()


def greedy(model: Any, prompt: Sequence[int], count: int) -> list[int]:
    import torch

    tokens = list(prompt)
    with torch.no_grad():
        for _ in range(count):
            tokens.append(int(model(torch.tensor([tokens])).logits[0, -1].argmax()))
    return tokens[len(prompt) :]


def tensors_of(model: Any) -> dict[str, np.ndarray]:
    return {name: parameter.detach().numpy().copy() for name, parameter in model.named_parameters()}


def golden_of(model: Any) -> list[GoldenPrompt]:
    return [GoldenPrompt(list(prompt), next_logprobs(model, prompt).tolist()) for prompt in PROMPTS]


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


@dataclass
class World:
    """The servers, the models that their weights come from, and the loop that talks to them."""

    runner: asyncio.Runner
    session: aiohttp.ClientSession
    store: WeightStore
    model_a: Any
    model_b: Any
    replica: Replica
    fresh: VllmClient
    fresh_supervisor: subprocess.Popen[str]

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(work)

    @property
    def client(self) -> VllmClient:
        return self.replica.client

    def publish(self, model: Any, golden: Sequence[GoldenPrompt] | None = None) -> WeightManifest:
        return self.store.publish(
            tensors_of(model).items(), step=0, golden=golden_of(model) if golden is None else golden
        )

    def update(self, model: Any) -> WeightManifest:
        """Brings the replica to `model`'s weights."""
        manifest = self.publish(model)
        outcome = self.run(self.replica.update(self.store, manifest))
        assert outcome.status == "updated", outcome
        return manifest


SUPERVISOR = """
import asyncio, json, sys
import aiohttp
from serving_bridge.config import ServingSettings
from serving_bridge.replica import Replica
async def main():
    settings = ServingSettings.model_validate_json(sys.argv[1])
    async with aiohttp.ClientSession() as session:
        replica = Replica("fresh", sys.argv[2], settings, session, log_path=sys.argv[3])
        await replica.start()
        await replica.client.name_version(1)
        print(json.dumps(replica.base_url), flush=True)
        await asyncio.sleep(3600)
asyncio.run(main())
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    import torch

    torch.set_num_threads(1)  # the servers need the cores
    folder = tmp_path_factory.mktemp("round")
    model_a, model_b = make_model(folder / "a", 0), make_model(folder / "b", 1)
    supervisor = subprocess.Popen(
        [sys.executable, "-c", SUPERVISOR, SETTINGS.model_dump_json(), str(folder / "b"), str(folder / "b.log")],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert supervisor.stdout is not None
    with asyncio.Runner() as runner:

        async def connect() -> aiohttp.ClientSession:
            return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))

        session = runner.run(connect())
        replica = Replica("replica-0", folder / "a", SETTINGS, session, log_path=folder / "a.log")
        try:
            runner.run(replica.start())
            url = supervisor.stdout.readline()
            assert url, (folder / "b.log").read_text()[-3000:]
            store = WeightStore(folder / "weights", "run")
            fresh = VllmClient(json.loads(url), session)
            yield World(runner, session, store, model_a, model_b, replica, fresh, supervisor)
        finally:
            supervisor.kill()
            supervisor.communicate()
            runner.run(replica.stop())
            runner.run(session.close())


async def greedily(client: VllmClient, prompt: Sequence[int], count: int) -> Completion:
    (answer,) = await client.generate(prompt, n=1, max_tokens=count, greedy=True, stop_token_ids=[], timeout_s=60)
    return answer


def test_a_load_that_breaks_off_or_misses_parameters_is_never_intact(tmp_path: Path):
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # vLLM's own, while it is imported
        from serving_bridge.vllm_plugin.engine import WeirEngine

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = torch.nn.Parameter(torch.zeros(64))
            self.broken, self.missed = True, True

        def load_weights(self, weights: Any) -> set[str]:
            for name, tensor in weights:
                if name == "model.norm.weight":
                    self.norm.copy_(tensor)
                    if self.broken:
                        raise MemoryError("halfway")
            return set() if self.missed else {"norm"}

    source = make_model(tmp_path / "a", 0)
    config = SimpleNamespace(hf_config=source.config, model="a", dtype=torch.float32)
    model = Model()
    engine = WeirEngine(
        SimpleNamespace(), SimpleNamespace(model_config=config, parallel_config=None), torch.device("cpu"), model
    )
    store = WeightStore(tmp_path / "weights", "run")
    manifest = store.publish(tensors_of(source).items(), step=0, golden=[])
    update = {"version": manifest.version, "content_sha256": manifest.content_sha256}

    def stage() -> None:
        engine.stager.begin(store.folder(manifest.version), manifest.content_sha256, engine.applied)
        while engine.stager.status()[0] == "reading":
            time.sleep(0.01)
        assert engine.stager.status() == ("staged", manifest.version, "")

    stage()
    with pytest.raises(MemoryError):
        engine.update_weights(update)
    assert (engine.intact, engine.applied) == (False, None)
    model.broken = False
    with pytest.raises(RuntimeError, match="left 1 parameters as they were, e.g. norm"):
        engine.update_weights(update)
    assert (engine.intact, engine.applied) == (False, None)
    model.missed = False
    engine.update_weights(update)
    assert (engine.intact, engine.applied) == (True, manifest.version)
    np.testing.assert_array_equal(model.norm.detach().numpy(), tensors_of(source)["model.norm.weight"])
    with pytest.raises(ValueError, match="is not staged, got nothing"):
        engine.update_weights(update)
    assert engine.intact


def test_a_started_replica_is_stale_and_its_answers_are_refused(world: World):
    assert world.replica.state == "stale"
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
    assert world.replica.state == "ready"
    assert outcome.error is None
    assert outcome.num_running == 0
    assert outcome.probe_max_abs is not None
    assert 0 < outcome.probe_max_abs < TOLERANCE
    assert 0 < outcome.pause_s < 10
    assert world.run(world.client.weight_version()) == manifest.version
    for prompt in PROMPTS:
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


def test_an_answer_cut_by_the_context_length_is_an_error(world: World):
    world.update(world.model_b)
    with pytest.raises(Rejected, match=r"cut at 6 of 40 tokens: raise serving.max_model_len"):
        world.run(world.client.generate([5] * 250, n=1, max_tokens=40, stop_token_ids=[], timeout_s=60))


async def round_amid_answers(
    world: World, manifest: WeightManifest
) -> tuple[RoundOutcome, list[list[Completion] | BaseException]]:
    """Runs a round while long answers are being sampled."""
    sampling = [
        asyncio.create_task(
            world.client.generate(prompt, n=2, max_tokens=200, stop_token_ids=[], seed=index, timeout_s=120)
        )
        for index, prompt in enumerate(PROMPTS * 3)
    ]
    while await world.client.num_requests() == 0:
        await asyncio.sleep(0.01)
    outcome = await world.replica.update(world.store, manifest)
    return outcome, await asyncio.gather(*sampling, return_exceptions=True)


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


def rewrite(world: World, manifest: WeightManifest, **changes: Any) -> WeightManifest:
    """Changes a stored manifest on disk."""
    changed = msgspec.structs.replace(manifest, **changes)
    (world.store.folder(manifest.version) / MANIFEST_NAME).write_bytes(encode_manifest(changed))
    return changed


def flip_bit(world: World) -> WeightManifest:
    manifest = world.publish(world.model_a)
    path = world.store.folder(manifest.version) / WEIGHTS_NAME
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    return manifest


def cut_file(world: World) -> WeightManifest:
    manifest = world.publish(world.model_a)
    os.truncate(world.store.folder(manifest.version) / WEIGHTS_NAME, 1000)
    return manifest


def wrong_base(world: World) -> WeightManifest:
    return rewrite(world, world.publish(world.model_a), base_version=999)


def other_content(world: World) -> WeightManifest:
    return msgspec.structs.replace(world.publish(world.model_a), content_sha256="0" * 64)


def older_version(world: World) -> WeightManifest:
    return world.store.manifest(1)


def publish_changed(change: Callable[[dict[str, np.ndarray]], None]) -> Callable[[World], WeightManifest]:
    def publish(world: World) -> WeightManifest:
        tensors = tensors_of(world.model_a)
        change(tensors)
        return world.store.publish(tensors.items(), step=0, golden=golden_of(world.model_a))

    return publish


def lose_norm(tensors: dict[str, np.ndarray]) -> None:
    del tensors["model.norm.weight"]


def add_head(tensors: dict[str, np.ndarray]) -> None:
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]


def grow_embedding(tensors: dict[str, np.ndarray]) -> None:
    tensors["model.embed_tokens.weight"] = np.zeros((130, 64), np.float32)


def narrow_dtype(tensors: dict[str, np.ndarray]) -> None:
    tensors["model.norm.weight"] = tensors["model.norm.weight"].astype(ml_dtypes.bfloat16)


def poison(tensors: dict[str, np.ndarray]) -> None:
    tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = np.nan


@pytest.mark.parametrize(
    ("publish", "message"),
    [
        (flip_bit, r"weights.safetensors has sha256 \w+, expected \w+"),
        (cut_file, r"has 1000 bytes, expected \d+"),
        (wrong_base, r"applies to base version 999, but this worker holds \d+"),
        (other_content, r"holds content \w+, expected 0{64}"),
        (older_version, r"version 1 is older than version \d+"),
        (publish_changed(lose_norm), r"1 missing \['model.norm.weight'\], 0 unknown"),
        (publish_changed(add_head), r"0 missing \[\], 1 unknown \['lm_head.weight'\]"),
        (publish_changed(grow_embedding), r"embed_tokens.weight has shape \(130, 64\), expected \(128, 64\)"),
        (publish_changed(narrow_dtype), r"norm.weight has dtype bfloat16, but the server computes in float32"),
        (publish_changed(poison), r"up_proj.weight of version \d+ holds values that are not finite"),
    ],
    ids=lambda value: getattr(value, "__name__", "") if callable(value) else "",
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
    assert world.replica.state == "ready"
    assert world.run(world.client.weight_version()) == version
    np.testing.assert_array_equal(world.run(world.client.prompt_logprobs(PROMPTS[2], timeout_s=60)), before)
    assert not world.run(world.client.is_paused())


class Meddling(VllmClient):
    """A client between whose pause and update something happens."""

    async def pause(self) -> None:
        await super().pause()
        await self.meddle()

    async def meddle(self) -> None:
        raise AssertionError("each test gives its own")


def meddling(world: World, meddle: Callable[[], Coroutine[Any, Any, None]]) -> Meddling:
    client = Meddling(world.client.base_url, world.session)
    client.meddle = meddle  # type: ignore[method-assign]
    return client


def test_a_version_replaced_after_staging_is_rejected_inside_the_pause(world: World):
    served, other, wanted = world.update(world.model_b), world.publish(world.model_a), world.publish(world.model_a)

    async def stage_another() -> None:
        await world.client.stage(world.store.folder(other.version), other.content_sha256)
        while (await world.client.worker_status()).state == "reading":
            await asyncio.sleep(0.01)

    outcome = world.run(run_round(meddling(world, stage_another), world.store, wanted, SETTINGS))
    assert outcome.status == "rejected"
    assert f"version {wanted.version}" in (outcome.error or "")
    assert f"got version {other.version}" in (outcome.error or "")
    assert outcome.num_running == 0
    assert not world.run(world.client.is_paused())
    assert world.run(greedily(world.client, PROMPTS[0], 3)).policy_version.tolist() == [served.version] * 3


def test_a_cancelled_round_leaves_the_engine_running(world: World):
    served, wanted = world.update(world.model_b), world.publish(world.model_a)

    async def cancel_while_paused() -> None:
        paused = asyncio.Event()

        async def wait_for_ever() -> None:
            paused.set()
            await asyncio.sleep(3600)

        work = asyncio.create_task(run_round(meddling(world, wait_for_ever), world.store, wanted, SETTINGS))
        await paused.wait()
        assert await world.client.is_paused()
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work

    world.run(cancel_while_paused())
    assert not world.run(world.client.is_paused())
    assert world.run(greedily(world.client, PROMPTS[0], 3)).policy_version.tolist() == [served.version] * 3
    # Its update session is still open; the next round must get past that.
    world.update(world.model_a)


def test_a_step_that_takes_too_long_is_given_up_and_the_engine_resumed(world: World):
    world.update(world.model_b)
    wanted = world.publish(world.model_a)
    settings = SETTINGS.model_copy(update={"update_timeout_s": 0.5})

    async def dawdle() -> None:
        await asyncio.sleep(3600)

    outcome = world.run(run_round(meddling(world, dawdle), world.store, wanted, settings))
    assert outcome.status == "unfit"
    assert "serving.update_timeout_s (0.5 s)" in (outcome.error or "")
    assert not world.run(world.client.is_paused())
    world.update(world.model_b)


def test_a_round_recovers_from_a_dead_controllers_open_session_and_pause(world: World):
    async def die_halfway() -> None:
        await world.client.start_update()
        await world.client.pause()

    world.run(die_halfway())
    manifest = world.update(world.model_b)
    assert not world.run(world.client.is_paused())
    assert world.run(greedily(world.client, PROMPTS[0], 2)).policy_version.tolist() == [manifest.version] * 2


def test_the_probe_catches_weights_that_are_not_the_learners(world: World):
    world.update(world.model_b)
    wrong = world.publish(world.model_a, golden=golden_of(world.model_b))
    outcome, answered = world.run(round_amid_answers(world, wrong))
    assert outcome.status == "unfit"
    assert world.replica.state == "unfit"
    assert outcome.probe_max_abs is not None
    assert outcome.probe_max_abs > 0.1
    assert "serving.probe_tolerance" in (outcome.error or "")
    assert not world.run(world.client.is_paused())
    assert all(isinstance(answer, Aborted) and answer.retryable for answer in answered), answered
    world.update(world.model_b)
    assert world.replica.state == "ready"


def test_a_version_without_golden_prompts_is_never_fit(world: World):
    outcome = world.run(world.replica.update(world.store, world.publish(world.model_b, golden=[])))
    assert outcome.status == "unfit"
    assert "no golden prompts" in (outcome.error or "")
    world.update(world.model_b)


def test_applying_the_same_version_twice_changes_nothing(world: World):
    manifest = world.update(world.model_b)
    before = world.run(world.client.prompt_logprobs(PROMPTS[2], timeout_s=60))
    assert world.run(world.replica.update(world.store, manifest)).status == "updated"
    np.testing.assert_array_equal(world.run(world.client.prompt_logprobs(PROMPTS[2], timeout_s=60)), before)


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
    assert world.replica.state == "stopped"
    assert world.replica.exit_status() == 0
    assert alive(pids) == []


def test_a_replica_out_of_reach_is_unfit(world: World):
    outcome = world.run(run_round(world.client, world.store, world.publish(world.model_b), SETTINGS))
    assert outcome.status == "unfit"
    assert "Cannot connect" in (outcome.error or "")


def test_kill_9_of_the_supervising_process_leaves_no_server(world: World):
    pids = process_tree(world.fresh_supervisor.pid)
    assert len(pids) >= 5, "supervisor, guard, API server, engine core and worker"
    os.kill(world.fresh_supervisor.pid, signal.SIGKILL)
    world.fresh_supervisor.wait()
    deadline = time.monotonic() + 40
    while left := alive(pids):
        assert time.monotonic() < deadline, f"processes {left} are still there"
        time.sleep(0.1)
