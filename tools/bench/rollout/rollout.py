"""How much of vLLM's own speed a rollout worker gets: tokens per second through it, beside vLLM's benchmark client.

python -m tools.bench rollout [--groups 96] [--group-size 8] [--tokens 64] [--concurrency 16] [--rounds 5] [--json PATH]

One real vLLM server with a small model that is made for it. In every round, in turn, with the same prompts, answers per
prompt, tokens per answer (no end token ends any) and prompts at once:

  weir    the worker: claims, prompts, dispatch, checks, decoding and scoring, groups put in a durable SQLite queue;
          from its start until the last group is in the queue
  vllm    vllm.benchmarks.serve against /v1/completions, as `vllm bench serve` runs it: streamed, without log-probs
  bare    the worker's very requests, sent and read and looked at no further: what its route can give

The ratios are within a round, of throughputs and of CPU time per token, which other work on the machine disturbs least.
CPU time is that of the client's process, for the worker with queue and verifier, and of the server's processes.

Not covered: GPUs, several replicas, long answers, and multi-turn dialogs.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import msgspec
from rich.table import Table

from configs.schema import CreateModelSettings
from rewards.contracts import Problem, RewardRequest, RewardResult, Split, scored
from serving_bridge.access import FreshKeys, Keys
from serving_bridge.evaluation import PromptEncoder
from serving_bridge.fleet import Replica
from serving_bridge.settings import RolloutSettings, ServingSettings
from serving_bridge.text import load_tokenizer
from serving_bridge.vllm import SERVED_MODEL_NAME, http_session
from tools.assembly import collect_garbage_less_often, create_model
from tools.bench import BenchmarkError
from tools.bench.processes import Sampler
from tools.bench.rollout.one_round import Side, play_round
from tools.bench.timing import (
    Spread,
    bench_parser,
    console,
    positive,
    ratio,
    sides_progress,
    spread,
    this_hardware,
    write_json,
)

SIDES = ("weir", "vllm", "bare")
_CLIENT, _SERVER = "client", "server"
AIM = 1.0
#: as configs/demo.toml has it
SHAPE = CreateModelSettings(
    hidden_size=128, intermediate_size=512, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=32
)
_MAX_PROMPT_TOKENS = 64


@dataclass(frozen=True)
class Work:
    """What is sampled in every round."""

    groups: int
    group_size: int
    tokens: int
    concurrency: int

    @property
    def total_tokens(self) -> int:
        return self.groups * self.group_size * self.tokens


@dataclass(frozen=True)
class Result:
    """Figures of each side over the rounds, and the worker's relative to the others'.

    Attributes:
      cpu_us: CPU microseconds per token, by side: of the client, of the server.
    """

    tokens_per_s: dict[str, Spread]
    of_vllm: Spread
    of_bare: Spread
    cpu_us: dict[str, tuple[Spread, Spread]]
    client_cpu_of_vllm: Spread
    all_cpu_of_vllm: Spread


@dataclass(frozen=True)
class Cost:
    """One round of one side: wall seconds, CPU seconds of the client's process and of the server's."""

    wall_s: float
    client_s: float
    server_s: float


class Additions:
    """Prompts that differ from round to round, so that no round finds the cache of another."""

    version = "bench"

    def __init__(self, first: int) -> None:
        self._first = first

    def problem(self, split: Split, index: int) -> Problem:
        number = self._first + index
        return Problem(index, f"Calculate {number} + {7 * number % 1000} - {13 * number % 1000}.", "", {})

    def num_distinct(self, split: Split) -> int | None:
        return None

    def target(self, problem: Problem) -> str:
        return problem.answer

    def score(self, request: RewardRequest) -> RewardResult:
        return scored(float(len(request.response) % 2), {})

    def close(self) -> None:
        """Nothing to end."""


class Server:
    """The server, and one round of each side against it."""

    def __init__(self, replica: Replica, keys: Keys, folder: Path, model_dir: Path, work: Work) -> None:
        self.replica, self._url = replica, replica.base_url
        self._keys = keys
        self.folder = folder
        self.work = work
        tokenizer = dataclasses.replace(load_tokenizer(model_dir), eos_ids=())  # no token ends an answer
        self.encoder = PromptEncoder(tokenizer, template="{question}", chat=False, max_prompt_tokens=_MAX_PROMPT_TOKENS)

    async def weir(self, number: int) -> float:
        """Seconds until all groups of the round are in the queue."""
        size = self.work.concurrency * self.work.group_size
        settings = RolloutSettings(
            group_size=self.work.group_size,
            max_prompt_tokens=_MAX_PROMPT_TOKENS,
            max_tokens=self.work.tokens,
            concurrent_groups=self.work.concurrency,
            min_concurrency=size,
            max_concurrency=size,
        )
        task = Additions(number * self.work.groups)
        side = Side(self.replica, self._keys, self.encoder, settings)
        return await play_round(side, task, self.folder / f"round-{number}", groups=self.work.groups)

    async def vllm(self, number: int) -> float:
        """Seconds that vLLM's client counts for the same prompts."""
        from vllm.benchmarks.datasets import SampleRequest
        from vllm.benchmarks.serve import TaskType, benchmark

        requests = [
            SampleRequest(prompt=prompt, prompt_len=len(prompt), expected_output_len=self.work.tokens)
            for prompt in self._prompts(number)
        ]
        with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
            found = await benchmark(
                task_type=TaskType.GENERATION,
                endpoint_type="openai",
                api_url=f"{self._url}/v1/completions",
                base_url=self._url,
                model_id=SERVED_MODEL_NAME,
                model_name=SERVED_MODEL_NAME,
                tokenizer=None,
                input_requests=requests,
                logprobs=None,
                request_rate=float("inf"),
                burstiness=1.0,
                disable_tqdm=True,
                num_warmups=0,
                profile=False,
                selected_percentile_metrics=[],
                selected_percentiles=[],
                ignore_eos=True,
                goodput_config_dict={},
                max_concurrency=self.work.concurrency,
                lora_modules=None,
                extra_headers=self.replica.client.authorization,
                extra_body={"n": self.work.group_size, "temperature": 1.0},
                ready_check_timeout_sec=0,
            )
        if found["total_output_tokens"] != self.work.total_tokens:
            raise BenchmarkError(
                f"vLLM's client got {found['total_output_tokens']} tokens, expected {self.work.total_tokens}"
            )
        return float(found["duration"])

    async def bare(self, number: int) -> float:
        """Seconds for the worker's requests alone."""
        parameters = {
            "n": self.work.group_size,
            "max_tokens": self.work.tokens,
            "temperature": 1.0,
            "ignore_eos": True,
            "logprobs": 0,
            "detokenize": False,
        }
        bodies = [
            msgspec.json.encode({"token_ids": prompt, "sampling_params": parameters, "packed": True})
            for prompt in self._prompts(number)
        ]
        headers = {"Content-Type": "application/json", **self.replica.client.authorization}
        limit = asyncio.Semaphore(self.work.concurrency)
        async with http_session() as session:

            async def ask(body: bytes) -> None:
                async with (
                    limit,
                    session.request(
                        "POST",
                        f"{self._url}/inference/v1/generate",
                        data=body,
                        headers=headers,
                    ) as response,
                ):
                    await response.read()
                    if response.status != 200:
                        raise BenchmarkError(f"the server answered {response.status}")

            began = time.perf_counter()
            await asyncio.gather(*(ask(body) for body in bodies))
            return time.perf_counter() - began

    def _prompts(self, number: int) -> list[list[int]]:
        task = Additions(number * self.work.groups)
        return [self.encoder.encode(task.problem("train", i)) or [] for i in range(self.work.groups)]


async def measure(
    work: Work,
    rounds: int,
    folder: Path,
    done: Callable[[str], object],
    *,
    weir: Callable[[Server, int], Awaitable[float]] = Server.weir,
) -> Result:
    """Starts the server, warms every side up, and takes the rounds, each begun by another side.

    Args:
      weir: one round of Weir's side, its number given, in seconds.
    """
    model_dir = folder / "model"
    texts = [Additions(0).problem("train", index).question for index in range(2000)]
    create_model(model_dir, SHAPE, texts, seed=0)
    settings = ServingSettings(
        max_model_len=_MAX_PROMPT_TOKENS + work.tokens + 1, max_num_seqs=work.concurrency * work.group_size
    )
    costs: dict[str, list[Cost]] = {side: [] for side in SIDES}
    sampler = Sampler(os.getpid(), _role)
    keys = FreshKeys()
    async with http_session() as session:
        log_path = folder / "server.log"
        replica = Replica(
            "bench", model_dir, settings, session, log_path=log_path, keys=keys, also_open=("/v1/completions",)
        )
        await replica.start()
        try:
            await replica.client.control().name_version(0)
            server = Server(replica, keys, folder, model_dir, work)
            sides: dict[str, Callable[[int], Awaitable[float]]] = {
                "weir": partial(weir, server),
                "vllm": server.vllm,
                "bare": server.bare,
            }
            for number in range(rounds + 1):
                for i in range(len(SIDES)):
                    side = SIDES[(number + i) % len(SIDES)]
                    before = sampler.sample().cpu_s
                    seconds = await sides[side](number)
                    used = {role: cpu_s - before.get(role, 0.0) for role, cpu_s in sampler.sample().cpu_s.items()}
                    done(side)
                    if number:  # the first one warms up
                        costs[side].append(Cost(seconds, used[_CLIENT], used.get(_SERVER, 0.0)))
        finally:
            await replica.stop()
    return summarized(costs, work.total_tokens)


def _role(words: Sequence[str], name: str, parent: str) -> str:
    return _SERVER if parent in (_CLIENT, _SERVER) else _CLIENT


def summarized(costs: Mapping[str, Sequence[Cost]], tokens: int) -> Result:
    """From each side's costs of its rounds, of so many tokens each."""
    rates = {side: [tokens / cost.wall_s for cost in costs[side]] for side in SIDES}
    client = {side: [1e6 * cost.client_s / tokens for cost in costs[side]] for side in SIDES}
    server = {side: [1e6 * cost.server_s / tokens for cost in costs[side]] for side in SIDES}
    both = {side: [sum(pair) for pair in zip(client[side], server[side], strict=True)] for side in SIDES}
    return Result(
        tokens_per_s={side: spread(rates[side]) for side in SIDES},
        of_vllm=ratio(rates["weir"], rates["vllm"]),
        of_bare=ratio(rates["weir"], rates["bare"]),
        cpu_us={side: (spread(client[side]), spread(server[side])) for side in SIDES},
        client_cpu_of_vllm=ratio(client["weir"], client["vllm"]),
        all_cpu_of_vllm=ratio(both["weir"], both["vllm"]),
    )


def verdict(result: Result, *, aim: float = AIM) -> str:
    """The aims, `aim` for throughput, and whether the medians meet them."""
    met = "met" if result.of_vllm.median >= aim else "NOT met"
    is_cheaper = "met" if result.client_cpu_of_vllm.median < 1 else "NOT met"
    return (
        f"throughput relative to vLLM's client: {result.of_vllm.show()} (aim {aim}): {met}\n"
        f"CPU time of the client per token, too: {result.client_cpu_of_vllm.show()} (aim below 1): {is_cheaper}\n"
        f"that of client and server together: {result.all_cpu_of_vllm.show()}"
    )


def table(result: Result) -> Table:
    cost = "CPU microseconds per token"
    found = Table("side", "tokens per second", "weir relative to it", f"{cost}, client", f"{cost}, server")
    for side, relative in (("weir", None), ("vllm", result.of_vllm), ("bare", result.of_bare)):
        rate, cpu = result.tokens_per_s[side].show(), [part.show() for part in result.cpu_us[side]]
        found.add_row(side, rate, "" if relative is None else relative.show(), *cpu)
    return found


def main(argv: Sequence[str]) -> None:
    """Measures, prints the table and the aim, and writes the figures as JSON where asked to."""
    parser = bench_parser("rollout", __doc__)
    parser.add_argument("--groups", type=positive, default=96, help="prompts of a round (default 96)")
    parser.add_argument("--group-size", type=positive, default=8, help="answers to a prompt (default 8)")
    parser.add_argument("--tokens", type=positive, default=64, help="of each answer (default 64)")
    parser.add_argument("--concurrency", type=positive, default=16, help="prompts at once (default 16)")
    parser.add_argument("--rounds", type=positive, default=5, help="default 5")
    given = parser.parse_args(argv)
    try:
        import vllm.benchmarks.serve  # noqa: F401
    except ImportError as error:
        raise BenchmarkError(f"the peer needs vLLM ({error}): run tools/install.sh demo") from None
    hardware, out = this_hardware(), console()
    out.print(str(hardware), highlight=False, soft_wrap=True)
    collect_garbage_less_often()
    work = Work(given.groups, given.group_size, given.tokens, given.concurrency)
    with sides_progress((given.rounds + 1) * len(SIDES)) as done, tempfile.TemporaryDirectory() as folder:
        result = asyncio.run(measure(work, given.rounds, Path(folder), done))
    out.print(table(result))
    out.print(verdict(result), highlight=False)
    if given.json is not None:
        write_json(given.json, "rollout", hardware, asdict(work) | {"rounds": given.rounds}, asdict(result))
        out.print(f"wrote {given.json}", highlight=False)
