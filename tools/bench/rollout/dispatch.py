"""What ten thousand concurrent episodes cost a rollout worker, and how evenly 64 replicas are loaded by them.

python -m tools.bench dispatch [--episodes 10000] [--replicas 64] [--tokens 256] [--seconds 20] [--json PATH]

Dialogs of two turns through the worker's own player, sampler, dispatcher and client. The replicas are in this
process, behind a session without network: they answer what vLLM would (the same bytes), after a time drawn from the
seed, and are uneven: each has a speed of its own. CPU is of this process; what the replicas' side of it costs,
measured by sending the same requests without a client, is taken off. Load is the answers in flight on a replica,
looked at 20 times a second after all episodes have begun; fairness is the greatest over the mean.

Not covered: sockets and HTTP (the session is not aiohttp's), scoring, the queue.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import Executor, Future
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, cast

import aiohttp
import msgspec
import numpy as np
import psutil
from rich.table import Table

from learner_jax.runtime import Waits
from rewards.contracts import EpisodeState, Outcome, Problem, Reply
from serving_bridge.evaluation import PromptEncoder
from serving_bridge.rollout import Player, Prefix, Sampler
from serving_bridge.routing import Dispatcher, ReplicaRow
from serving_bridge.settings import RolloutSettings
from serving_bridge.vllm import VllmClient
from serving_bridge.vllm_plugin import PackedAnswer, PackedChoice
from tools.assembly import collect_garbage_less_often
from tools.bench.timing import Spread, bench_parser, console, positive, spread, this_hardware, write_json

FAIRNESS_AIM = 1.1
_TURNS = 2
_PROMPT = list(range(100, 164))
_OBSERVATION = list(range(200, 232))
_EOS = 1
_ANSWER_S = 8.0
_LOOKS_S = 0.05


@dataclass(frozen=True)
class Result:
    """Figures of one run.

    Attributes:
      cpu_us_per_token: of the worker's side.
      take_us: CPU of one `take` with its `give_back`, with all episodes in flight.
      kib_per_episode: growth of the resident set from no episode to all, prompts and answers included.
      fairness: greatest load over mean load, over the looks.
      loop_late_ms: how much later than asked the event loop woke the observer.
    """

    episodes: int
    replicas: int
    tokens_per_s: float
    cpu_us_per_token: float
    replica_us_per_token: float
    take_us: float
    kib_per_episode: float
    fairness: Spread
    fairness_max: float
    loop_late_ms: Spread


class _Inline(Executor):
    """Scores at once: here it costs nothing."""

    def submit(self, function: Any, /, *arguments: Any, **options: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(function(*arguments, **options))
        return future


class _Tokenizer:
    """Texts don't matter here."""

    eos_ids = (_EOS,)

    def decode(self, ids: Sequence[int]) -> str:
        return ""

    def encode_observation(self, text: str, *, chat: bool, after: int) -> list[int]:
        return _OBSERVATION


class _TwoTurns:
    """One observation after the first answer."""

    version, max_turns = "bench", _TURNS

    def reset(self, problem: Problem) -> EpisodeState:
        return EpisodeState(problem)

    def step(self, state: EpisodeState, reply: Reply) -> Outcome:
        after = EpisodeState(state.problem, state.turn + 1)
        return Outcome(0.0, {}, "fail", None if after.turn == _TURNS else "go on", after)


@dataclass
class _Response:
    payload: bytes
    status: int = 200

    async def read(self) -> bytes:
        return self.payload


@dataclass
class FleetSession:
    """An aiohttp session as far as the client uses one, with the fleet behind it.

    Attributes:
      answer_s: seconds of an answer, by host name.
      answers: encoded ones to choose from, and their numbers of tokens.
    """

    answer_s: dict[str, float]
    answers: list[tuple[bytes, int]]
    rng: random.Random
    in_flight: Counter[str] = field(default_factory=Counter)
    tokens: int = 0

    def request(
        self, method: str, url: str, *, data: bytes | None = None, timeout: aiohttp.ClientTimeout, **_: Any
    ) -> AbstractAsyncContextManager[_Response]:
        return self._answer(url.split("/", 3)[2])

    @asynccontextmanager
    async def _answer(self, host: str) -> AsyncIterator[_Response]:
        payload, tokens = self.answers[self.rng.randrange(len(self.answers))]
        self.in_flight[host] += 1
        try:
            await asyncio.sleep(self.answer_s[host] * self.rng.uniform(0.5, 1.5))
        finally:
            self.in_flight[host] -= 1
        self.tokens += tokens
        yield _Response(payload)


def encoded_answers(mean_tokens: int, rng: random.Random, count: int = 64) -> list[tuple[bytes, int]]:
    """Answers as the plugin packs them, of half to one and a half times the mean, ended by the end token."""
    found = []
    for _ in range(count):
        length = rng.randint(mean_tokens // 2, mean_tokens * 3 // 2)
        tokens = [*(rng.randrange(2, 150_000) for _ in range(length - 1)), _EOS]
        choice = PackedChoice(
            index=0,
            finish_reason="stop",
            tokens=np.array(tokens, "<i4").tobytes(),
            logprobs=np.array([-rng.expovariate(2.0) for _ in tokens], "<f4").tobytes(),
            spans=[("7", 0, length)],
        )
        found.append((msgspec.msgpack.encode(PackedAnswer([choice])), length))
    return found


async def measure(
    episodes: int, replicas: int, tokens: int, seconds: float, *, answer_s: float = _ANSWER_S, seed: int = 0
) -> Result:
    """Keeps so many episodes going for the time given, once they have all begun.

    Args:
      answer_s: time of a whole answer on a replica of middling speed.
    """
    rng = random.Random(seed)
    speeds = {f"r{i}": rng.uniform(0.7, 1.3) for i in range(replicas)}
    session = FleetSession(
        {name: answer_s * speed for name, speed in speeds.items()}, encoded_answers(tokens, rng), rng
    )
    per_replica = -(-2 * episodes // replicas)
    settings = RolloutSettings(
        max_prompt_tokens=64,
        max_tokens=2 * tokens,
        min_concurrency=per_replica,
        max_concurrency=per_replica,
    )
    loop = asyncio.get_running_loop()
    dispatcher = Dispatcher(settings, lambda row: VllmClient(row.url, session), Waits(loop.time))
    dispatcher.update([ReplicaRow(name, f"http://{name}", "healthy", 7, 0, 0.0) for name in speeds])
    tokenizer = cast(Any, _Tokenizer())
    count: Counter[str] = Counter()
    sampler = Sampler(dispatcher, settings, (_EOS,), count=count, log=_no_log, rng=rng)
    encoder = PromptEncoder(tokenizer, template="", chat=False, max_prompt_tokens=64)
    player = Player(_TwoTurns(), encoder, sampler, settings, scoring=_Inline(), count=count)

    async def play_on(index: int) -> None:
        while True:
            await player.play(Problem(index, "", "", {}), _PROMPT, Prefix())

    collect_garbage_less_often()
    rss_before = _rss_kib()
    playing = [asyncio.create_task(play_on(index)) for index in range(episodes)]
    await asyncio.sleep(2 * answer_s)  # until their phases have spread
    rss = _rss_kib()
    tokens_before, cpu_before, began = session.tokens, time.process_time(), loop.time()
    fairness, late = [], []
    while (asked := loop.time()) < began + seconds:
        await asyncio.sleep(_LOOKS_S)
        late.append(1e3 * max(0.0, loop.time() - asked - _LOOKS_S))
        loads = [session.in_flight[name] for name in speeds]
        fairness.append(max(loads) * replicas / sum(loads))
    cpu_s, sampled, wall_s = time.process_time() - cpu_before, session.tokens - tokens_before, loop.time() - began
    take_us = await _take_us(dispatcher)
    for task in playing:
        task.cancel()
    await asyncio.gather(*playing, return_exceptions=True)
    replica_us = await _replica_us(session)
    return Result(
        episodes=episodes,
        replicas=replicas,
        tokens_per_s=sampled / wall_s,
        cpu_us_per_token=1e6 * cpu_s / sampled - replica_us,
        replica_us_per_token=replica_us,
        take_us=take_us,
        kib_per_episode=(rss - rss_before) / episodes,
        fairness=spread(fairness),
        fairness_max=max(fairness),
        loop_late_ms=spread(late),
    )


async def _take_us(dispatcher: Dispatcher, count: int = 20_000) -> float:
    began = time.process_time()
    for _ in range(count):
        dispatcher.give_back(await dispatcher.take(1, "r0"), answered=True)
    return 1e6 * (time.process_time() - began) / count


async def _replica_us(session: FleetSession, count: int = 5000) -> float:
    """CPU per token of the replicas' side alone."""
    fast = FleetSession(dict.fromkeys(session.answer_s, 0.1), session.answers, session.rng)

    async def ask() -> None:
        async with fast.request("POST", "http://r0/x", timeout=aiohttp.ClientTimeout()) as response:
            await response.read()

    began = time.process_time()
    await asyncio.gather(*(ask() for _ in range(count)))
    return 1e6 * (time.process_time() - began) / fast.tokens


def _no_log(*_: Any, **__: Any) -> None:
    """Nothing fails here."""


def _rss_kib() -> float:
    return psutil.Process().memory_info().rss / 1024


def table(result: Result) -> Table:
    rows = {
        "episodes in flight, replicas": f"{result.episodes:,}, {result.replicas}",
        "tokens per second": f"{result.tokens_per_s:,.0f}",
        "worker's CPU per token": f"{result.cpu_us_per_token:.2f} us",
        "replicas' side, taken off": f"{result.replica_us_per_token:.3f} us",
        "CPU of one choice of a replica": f"{result.take_us:.1f} us",
        "memory per episode": f"{result.kib_per_episode:.1f} KiB",
        "greatest over mean load": f"{result.fairness.show()}, at most {result.fairness_max:.3f}",
        "event loop late by": f"{result.loop_late_ms.show()} ms",
    }
    found = Table("figure", "value")
    for name, value in rows.items():
        found.add_row(name, value)
    return found


def main(argv: Sequence[str]) -> None:
    """Measures, prints the table and the aim, and writes the figures as JSON where asked to."""
    parser = bench_parser("dispatch", __doc__)
    parser.add_argument("--episodes", type=positive, default=10_000, help="in flight at once (default 10000)")
    parser.add_argument("--replicas", type=positive, default=64, help="default 64")
    parser.add_argument("--tokens", type=positive, default=256, help="of an answer, on average (default 256)")
    parser.add_argument("--seconds", type=positive, default=20, help="of measurement (default 20)")
    given = parser.parse_args(argv)
    hardware, out = this_hardware(), console()
    out.print(str(hardware), highlight=False, soft_wrap=True)
    result = asyncio.run(measure(given.episodes, given.replicas, given.tokens, given.seconds))
    out.print(table(result))
    met = "met" if result.fairness.p90 <= FAIRNESS_AIM else "NOT met"
    out.print(f"greatest over mean load, 90th percentile: {result.fairness.p90:.3f} (aim {FAIRNESS_AIM}): {met}")
    if given.json is not None:
        settings = {name: getattr(given, name) for name in ("episodes", "replicas", "tokens", "seconds")}
        write_json(given.json, "dispatch", hardware, settings, asdict(result))
        out.print(f"wrote {given.json}", highlight=False)
