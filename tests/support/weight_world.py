"""Real vLLM servers on the CPU and the small random models that they serve, for the tests of weight rounds."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import numpy as np

from learner_jax.contracts.weights import GoldenPrompt, WeightManifest
from serving_bridge.access.keys import FreshKeys
from serving_bridge.fleet.replica import Replica
from serving_bridge.fleet.weight_round import RoundOutcome
from serving_bridge.settings.serving import ServingSettings
from serving_bridge.vllm.client import Completion, VllmClient
from serving_bridge.weights.store import WeightStore
from serving_bridge.weights.writer import VersionWriter

T = TypeVar("T")
SETTINGS = ServingSettings(max_model_len=256, max_num_seqs=64, start_timeout_s=300, probe_tolerance=1e-4)
#: vLLM and transformers add up float32 in different orders
TOLERANCE = 1e-4
PROMPTS = ([5, 6, 7], [9, 8, 70, 71, 100, 3], list(range(20, 60)))
EOS = 1


def make_model(folder: Path, seed: int) -> Any:
    """A random Qwen3 with tied head and square q_proj and o_proj, one token per id; returns it, saved to `folder`."""
    import torch
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=128,
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
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


SUPERVISOR = """
import asyncio, json, sys
from pathlib import Path
import aiohttp
from serving_bridge.settings.serving import ServingSettings
from serving_bridge.fleet.replica import Replica
async def main():
    settings = ServingSettings.model_validate_json(sys.argv[1])
    async with aiohttp.ClientSession() as session:
        options = dict(log_path=sys.argv[3], store=Path(sys.argv[4]))
        replica = Replica("fresh", sys.argv[2], settings, session, **options)
        await replica.start()
        await replica.client.control().name_version(1)
        print(json.dumps([replica.base_url, replica.client.token]), flush=True)
        await asyncio.sleep(3600)
asyncio.run(main())
"""


class FreshServer:
    """A server on weights B that a process of its own supervises; started when it is first asked for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._supervisor: subprocess.Popen[str] | None = None
        self._address: tuple[str, str] | None = None

    @property
    def supervisor(self) -> subprocess.Popen[str]:
        if self._supervisor is None:
            folder = self._folder
            arguments = [SETTINGS.model_dump_json(), str(folder / "b"), str(folder / "b.log"), str(folder / "weights")]
            self._supervisor = subprocess.Popen(
                [sys.executable, "-c", SUPERVISOR, *arguments], stdout=subprocess.PIPE, text=True
            )
        return self._supervisor

    def address(self) -> tuple[str, str]:
        """(URL, token) of the server, once it is ready."""
        if self._address is None:
            output = self.supervisor.stdout
            assert output is not None
            line = output.readline()
            assert line, (self._folder / "b.log").read_text()[-3000:]
            url, token = json.loads(line)
            self._address = url, token
        return self._address

    def kill(self) -> None:
        if self._supervisor is not None:
            self._supervisor.kill()
            self._supervisor.communicate()


@dataclass
class World:
    """The servers, the models that their weights come from, and the loop that talks to them."""

    runner: asyncio.Runner
    session: aiohttp.ClientSession
    folder: Path
    store: WeightStore
    model_a: Any
    model_b: Any
    replica: Replica
    keys: FreshKeys
    other: FreshServer

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(work)

    @property
    def client(self) -> VllmClient:
        return self.replica.client

    @property
    def fresh(self) -> VllmClient:
        """The client of the server that started on weights B and was never updated."""
        url, token = self.other.address()
        return VllmClient(url, self.session, token=token)

    def publish(self, model: Any, golden: Sequence[GoldenPrompt] | None = None) -> WeightManifest:
        return VersionWriter(self.store).publish(
            tensors_of(model).items(), step=0, golden=golden_of(model) if golden is None else golden
        )

    def update(self, model: Any) -> WeightManifest:
        """Brings the replica to `model`'s weights."""
        manifest = self.publish(model)
        outcome = self.run(self.replica.update(self.store, manifest))
        assert outcome.status == "updated", outcome
        return manifest


@contextmanager
def running_world(folder: Path) -> Iterator[World]:
    """One server on weights A, which a `Replica` of this process owns, and at request one on weights B."""
    import torch

    torch.set_num_threads(1)  # the servers need the cores
    model_a, model_b = make_model(folder / "a", 0), make_model(folder / "b", 1)
    other = FreshServer(folder)
    with asyncio.Runner() as runner:

        async def connect() -> aiohttp.ClientSession:
            return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))

        session = runner.run(connect())
        store, keys = WeightStore(folder / "weights", "run"), FreshKeys()
        replica = Replica(
            "replica-0", folder / "a", SETTINGS, session, log_path=folder / "a.log", keys=keys, store=store.root
        )
        try:
            runner.run(replica.start())
            yield World(runner, session, folder, store, model_a, model_b, replica, keys, other)
        finally:
            other.kill()
            runner.run(replica.stop())
            runner.run(session.close())


async def greedily(client: VllmClient, prompt: Sequence[int], count: int) -> Completion:
    (answer,) = await client.generate(prompt, n=1, max_tokens=count, greedy=True, stop_token_ids=[], timeout_s=60)
    return answer


def assert_serves(world: World, served: dict[int, Any]) -> int:
    """The replica isn't paused and has one of these versions, name and weights alike; returns which."""
    assert not world.run(world.client.is_paused())
    (version,) = set(world.run(greedily(world.client, PROMPTS[0], 3)).policy_version.tolist())
    got = world.run(world.client.prompt_logprobs(PROMPTS[2], timeout_s=60))
    np.testing.assert_allclose(got, next_logprobs(served[version], PROMPTS[2]), atol=TOLERANCE, rtol=0)
    return int(version)


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
