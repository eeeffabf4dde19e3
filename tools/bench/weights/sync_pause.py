"""What a client that streams an answer sees of a weight update: the longest time between two tokens, really served."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import jax
import numpy as np

from configs.schema import CreateModelSettings
from learner_jax.contracts import GoldenPrompt, ModelConfig, WeightManifest, read_model_config
from learner_jax.models import export_tensors, load_parameters, merge, token_logprobs
from serving_bridge.fleet import Replica, RoundOutcome, run_round
from serving_bridge.settings import ServingSettings, StoreSettings
from serving_bridge.vllm import VllmClient
from serving_bridge.weights import Publisher, VersionWriter, WeightStore
from tools.assembly import create_model
from tools.bench import BenchmarkError
from tools.bench.timing import Spread, spread

#: what happens in the middle of the answers
EVENTS = ("nothing", "update", "full")
#: beyond vLLM's own pause and resume
AIM_S = 0.02
#: 24 million parameters, 95 MB in float32
SHAPE = CreateModelSettings(
    hidden_size=512, intermediate_size=2048, num_layers=6, num_heads=8, num_kv_heads=4, head_dim=64, vocab_size=2048
)
_GOLDEN = ([3, 5, 7, 11, 13, 17, 19, 23], [2, 4, 8, 16, 32, 64], list(range(1, 20)), [9, 9, 9, 1])
_PROMPT_TOKENS = 8
_SHARE = 0.01
#: until all streams have begun, and some steps have passed
_BEGUN_S = 0.7


@dataclass(frozen=True)
class Gaps:
    """Times between tokens that one streaming client saw, seconds.

    Attributes:
      tokens_before: tokens that came before the longest gap.
      probe_s: inside the pause, by the golden prompts; 0 without any.
    """

    median: float
    longest: float
    tokens_before: int
    probe_s: float = 0.0


@dataclass(frozen=True)
class Row:
    """One event with so many answers in flight, over the rounds.

    Attributes:
      pause_s: longest gap when vLLM is just paused and resumed, answers kept and caches cleared, after as many tokens
        as came before the event's longest gap: what is computed anew afterwards grows with the answers.
      beyond_pause_s: what the event's longest gap is more than that, run after run.
      probe_s: what the golden prompts take of it.
    """

    event: str
    in_flight: int
    median_s: Spread
    longest_s: Spread
    pause_s: Spread | None
    beyond_pause_s: Spread | None
    probe_s: Spread | None


def measure(
    folder: Path, *, in_flight: Sequence[int], rounds: int, tokens: int, done: Callable[[str], None]
) -> tuple[list[Row], int]:
    """Rows by number in flight and event; and the bytes of the model."""
    return asyncio.run(_measure(folder, in_flight, rounds, tokens, done))


async def _measure(
    folder: Path, in_flight: Sequence[int], rounds: int, tokens: int, done: Callable[[str], None]
) -> tuple[list[Row], int]:
    model_dir = folder / "model"
    create_model(model_dir, SHAPE, ["0123456789 + - = abcdefghijklmnopqrstuvwxyz"], seed=0)
    source = _Source(model_dir, folder / "weights")
    settings = ServingSettings(max_model_len=2 * tokens + 64, max_num_seqs=max(in_flight) + 8)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        replica = Replica(
            "bench", model_dir, settings, session, log_path=folder / "server.log", store=source.store.root
        )
        await replica.start()
        try:
            await _round(replica, source, settings, source.publish(whole=True))
            found: dict[tuple[int, str], list[tuple[Gaps, Gaps | None]]] = {}
            for i in range(rounds):
                for number in in_flight:
                    first = i % len(EVENTS)
                    for event in EVENTS[first:] + EVENTS[:first]:
                        one = await _one(replica, source, settings, number, event, tokens)
                        pause = None if event == "nothing" else await _pause(replica, number, one, tokens)
                        found.setdefault((number, event), []).append((one, pause))
                        done(f"{number} in flight: {event}")
        finally:
            await replica.stop()
            source.close()
    return [_row(event, number, pairs) for (number, event), pairs in sorted(found.items())], source.num_bytes


def _row(event: str, number: int, pairs: Sequence[tuple[Gaps, Gaps | None]]) -> Row:
    ones = [one for one, _ in pairs]
    pauses = [pause.longest for _, pause in pairs if pause is not None]
    median, longest = spread([one.median for one in ones]), spread([one.longest for one in ones])
    if not pauses:
        return Row(event, number, median, longest, None, None, None)
    beyond = [one.longest - pause for one, pause in zip(ones, pauses, strict=True)]
    return Row(event, number, median, longest, spread(pauses), spread(beyond), spread([one.probe_s for one in ones]))


async def _one(
    replica: Replica, source: _Source, settings: ServingSettings, number: int, event: str, tokens: int
) -> Gaps:
    """The gaps of one of `number` streams while the event happens; versions are made before."""
    manifest = None if event == "nothing" else source.publish(whole=event == "full")
    async with _streaming(replica, number, tokens) as arrivals:
        probe_s = 0.0
        if manifest is not None:
            probe_s = (await _round(replica, source, settings, manifest)).probe_s
            check_goes_on(arrivals, tokens)
    return _gaps(arrivals[0], probe_s)


async def _pause(replica: Replica, number: int, like: Gaps, tokens: int) -> Gaps:
    """The gaps around vLLM's own pause, at the token at which another event's longest gap was."""
    async with _streaming(replica, number, tokens) as arrivals:
        while len(arrivals[0]) < like.tokens_before:
            await asyncio.sleep(0.001)
        control = replica.client.control()
        await control.pause()
        await control.resume()
        check_goes_on(arrivals, tokens)
    return _gaps(arrivals[0])


def check_goes_on(arrivals: Sequence[Sequence[float]], tokens: int) -> None:
    """Raises `BenchmarkError` if an answer had ended by the end of a pause: the pause is then none that it shows."""
    ended = sum(len(arrived) >= tokens for arrived in arrivals)
    if ended:
        raise BenchmarkError(
            f"{ended} of {len(arrivals)} answers of {tokens} tokens ended before the pause did: raise --tokens"
        )


@asynccontextmanager
async def _streaming(replica: Replica, number: int, tokens: int) -> AsyncIterator[list[list[float]]]:
    """When each token of each of `number` answers arrived; complete when the context ends."""
    arrivals: list[list[float]] = [[] for _ in range(number)]
    streams = [
        asyncio.create_task(_stream(replica.client, seed, tokens, arrived)) for seed, arrived in enumerate(arrivals)
    ]
    await asyncio.sleep(_BEGUN_S)
    yield arrivals
    await asyncio.gather(*streams)


def _gaps(arrivals: Sequence[float], probe_s: float = 0.0) -> Gaps:
    between = np.diff(arrivals)
    return Gaps(float(np.median(between)), float(between.max()), int(between.argmax()) + 1, probe_s)


async def _round(
    replica: Replica, source: _Source, settings: ServingSettings, manifest: WeightManifest
) -> RoundOutcome:
    outcome = await run_round(replica.client, manifest, settings)
    if outcome.status != "updated":
        raise BenchmarkError(f"version {manifest.version} was not taken: {outcome.error}")
    return outcome


async def _stream(client: VllmClient, seed: int, tokens: int, arrivals: list[float]) -> None:
    """Notes when each token of one answer arrives, by the monotonic clock."""
    rng = np.random.default_rng(seed)
    body: dict[str, Any] = {
        "token_ids": rng.integers(1, 30, _PROMPT_TOKENS).tolist(),
        "stream": True,
        "sampling_params": {"max_tokens": tokens, "temperature": 1.0, "ignore_eos": True, "detokenize": False},
    }
    # A session of its own, so that one stream's bytes do not wait behind another's.
    url, headers = f"{client.base_url}/inference/v1/generate", client.authorization
    async with aiohttp.ClientSession() as session, session.post(url, json=body, headers=headers) as got:
        async for line in got.content:
            text = line.decode().strip()
            if text.startswith("data: ") and text != "data: [DONE]":
                count = sum(len(choice.get("token_ids") or []) for choice in json.loads(text[6:]).get("choices", []))
                arrivals += [time.monotonic()] * count
    if len(arrivals) != tokens:
        raise BenchmarkError(f"a stream sent {len(arrivals)} of {tokens} tokens")


class _Source:
    """Weights that move by a step of one percent of their elements, published with the learner's own log-probs."""

    def __init__(self, model_dir: Path, root: Path) -> None:
        self.store = WeightStore(root, "bench")
        self._config: ModelConfig = read_model_config(model_dir)
        self._params = jax.tree.map(np.asarray, load_parameters(model_dir, self._config))
        settings = StoreSettings(anchor_every=1_000_000)
        self._publisher = Publisher(self.store, settings, log=lambda *_, **__: None)
        self._rng = np.random.default_rng(0)
        self.num_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(self._params))

    def publish(self, *, whole: bool) -> WeightManifest:
        self._params = jax.tree.map(self._moved, self._params)
        manifest = self._publisher.publish(
            export_tensors(self._params, self._config, "float32"), step=0, golden=self._golden()
        )
        if whole and manifest.format == "sparse":
            return VersionWriter(self.store).add_anchor(manifest, self._publisher.newest())
        return manifest

    def close(self) -> None:
        self._publisher.close()

    def _moved(self, leaf: np.ndarray) -> np.ndarray:
        where = self._rng.random(leaf.shape, np.float32) < _SHARE
        moved: np.ndarray = np.where(where, leaf * np.float32(1.001), leaf)
        return moved

    def _golden(self) -> list[GoldenPrompt]:
        model = merge(self._config, jax.tree.map(jax.numpy.asarray, self._params))
        found = []
        for tokens in _GOLDEN:
            logprobs = np.asarray(token_logprobs(model, jax.numpy.asarray([tokens], np.int32)).logprobs)[0, 1:]
            found.append(GoldenPrompt(list(tokens), [float(x) for x in logprobs]))
        return found
