"""Whether scoring holds up sampling: tokens per second beside a reward that sleeps a second for every answer.

python -m tools.bench slow_rewards [--groups 48] [--group-size 8] [--tokens 256] [--concurrency 8] [--scored 64]
                                   [--rounds 5] [--json PATH]

One real vLLM server with a small model that is made for it, and a real rollout worker with its queue. In every round,
in turn, with the same settings:

  quick   a user's reward in processes of its own, which answers at once
  slow    the same, which sleeps a second first

Tokens per second are those of sampling: from the first request to the last answer from the server. The last verdicts
come after that; they delay a round's end by a second at least, and no token. Requests in flight are the mean over the
same time: other work on the machine slows both sides' tokens, and leaves requests as many.

--scored answers are scored at a time (rollout.reward_threads and task.score_processes): for a reward that sleeps a
second, as many as the server gives in one. --places groups are under way at a time: those that are sampled, and those
that are scored.

Not covered: rewards that need a processor, GPUs, several replicas, and multi-turn dialogs.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from rich.table import Table

from rewards.contracts import Task
from rewards.settings import TaskSettings
from rewards.tasks import create_task
from serving_bridge.access import FreshKeys
from serving_bridge.evaluation import PromptEncoder
from serving_bridge.fleet import Replica
from serving_bridge.settings import RolloutSettings, ServingSettings
from serving_bridge.text import load_tokenizer
from serving_bridge.vllm import http_session
from tools.assembly import collect_garbage_less_often, create_model
from tools.bench.rollout.one_round import Side, play_round
from tools.bench.rollout.rollout import SHAPE
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

QUICK, SLOW, RATIO = "quick", "slow", "slow over quick"
#: side -> reward
REWARDS = {
    QUICK: "tools.bench.rollout.sleeping_reward:at_once",
    SLOW: "tools.bench.rollout.sleeping_reward:after_a_second",
}
AIM = 0.95
_MAX_PROMPT_TOKENS = 64
_SCORE_TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Work:
    """What is sampled in every round, and how much at once.

    Attributes:
      concurrency: groups that the server samples at a time.
      places: groups under way at a time, those that are scored among them.
      scored: answers scored at a time.
    """

    groups: int
    group_size: int
    tokens: int
    concurrency: int
    places: int
    scored: int

    @property
    def total_tokens(self) -> int:
        return self.groups * self.group_size * self.tokens

    def rollout(self) -> RolloutSettings:
        at_once = self.concurrency * self.group_size
        return RolloutSettings(
            group_size=self.group_size,
            max_prompt_tokens=_MAX_PROMPT_TOKENS,
            max_tokens=self.tokens,
            concurrent_groups=self.places,
            min_concurrency=at_once,
            max_concurrency=at_once,
            reward_threads=self.scored,
        )


@dataclass
class Requests:
    """The time from the first request to the last answer; implements `learner_jax.runtime.Spans`.

    Attributes:
      open_s: seconds that requests were open, summed over them.
    """

    began_s: float = float("inf")
    ended_s: float = float("-inf")
    open_s: float = 0.0

    @property
    def seconds(self) -> float:
        return self.ended_s - self.began_s

    def group(self, group_id: str) -> AbstractContextManager[None]:
        return nullcontext()

    def span(self, name: str, **attributes: str | int | float) -> AbstractContextManager[None]:
        return self._request() if name == "request" else nullcontext()

    def past(
        self, group_ids: Sequence[str], name: str, began_s: float, ended_s: float, **attributes: str | int | float
    ) -> None:
        """Nothing else counts."""

    @contextmanager
    def _request(self) -> Iterator[None]:
        began = time.perf_counter()
        yield
        ended = time.perf_counter()
        self.began_s, self.ended_s = min(self.began_s, began), max(self.ended_s, ended)
        self.open_s += ended - began


@dataclass(frozen=True)
class Sampled:
    """One round of one side: tokens per second, and the mean number of requests in flight."""

    tokens_per_s: float
    in_flight: float


async def measure(work: Work, rounds: int, folder: Path, done: Callable[[str], object]) -> dict[str, list[Sampled]]:
    """Each side in each round; each round is begun by the other side, and one warms up before.

    Raises:
      BenchmarkError: a request was tried again.
    """
    tasks = {side: _task(reward, work, folder / f"{side}.jsonl", rounds) for side, reward in REWARDS.items()}
    model_dir = folder / "model"
    create_model(model_dir, SHAPE, [tasks[QUICK].problem("train", i).question for i in range(work.groups)], seed=0)
    serving = ServingSettings(
        max_model_len=_MAX_PROMPT_TOKENS + work.tokens + 1, max_num_seqs=work.concurrency * work.group_size
    )
    keys = FreshKeys()
    found: dict[str, list[Sampled]] = {side: [] for side in REWARDS}
    async with http_session() as session:
        replica = Replica("bench", model_dir, serving, session, log_path=folder / "server.log", keys=keys)
        await replica.start()
        try:
            await replica.client.control().name_version(0)
            tokenizer = dataclasses.replace(load_tokenizer(model_dir), eos_ids=())  # no token ends an answer
            encoder = PromptEncoder(tokenizer, template="{question}", chat=False, max_prompt_tokens=_MAX_PROMPT_TOKENS)
            play = partial(_round, Side(replica, keys, encoder, work.rollout()), work)
            for number in range(rounds + 1):
                for side in list(REWARDS)[:: 1 if number % 2 == 0 else -1]:
                    sampled = await play(tasks[side], folder / f"{side}-{number}")
                    done(side)
                    if number:
                        found[side].append(sampled)
        finally:
            await replica.stop()
            for task in tasks.values():
                task.close()
    return found


async def _round(side: Side, work: Work, task: Task, folder: Path) -> Sampled:
    requests = Requests()
    await play_round(side, task, folder, groups=work.groups, spans=requests)
    return Sampled(work.total_tokens / requests.seconds, requests.open_s / requests.seconds)


def _task(reward: str, work: Work, file: Path, rounds: int) -> Task:
    """Rows of additions; half of a side's are for training."""
    lines = [{"question": f"Calculate {i} + {7 * i % 1000}."} for i in range(4 * work.groups)]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    settings = TaskSettings(
        provider="rows",
        data=str(file),
        answer_column="",
        reward=reward,
        score_processes=work.scored,
        score_timeout_s=_SCORE_TIMEOUT_S,
    )
    return create_task(settings, seed=0)


def figures(sampled: Mapping[str, Sequence[Sampled]]) -> dict[str, dict[str, Spread]]:
    """Figure -> side -> its spread over the rounds; "slow over quick" is of ratios within a round."""
    names = ("tokens_per_s", "in_flight")
    values = {name: {side: [getattr(one, name) for one in sampled[side]] for side in REWARDS} for name in names}
    return {
        name: {side: spread(found) for side, found in sides.items()} | {RATIO: ratio(sides[SLOW], sides[QUICK])}
        for name, sides in values.items()
    }


def table(found: Mapping[str, Mapping[str, Spread]]) -> Table:
    shown = Table("reward", "tokens per second", "requests in flight")
    for side in (*REWARDS, RATIO):
        shown.add_row(side, *(found[name][side].show() for name in ("tokens_per_s", "in_flight")))
    return shown


def main(argv: Sequence[str]) -> None:
    """Measures, prints the table and the aim, and writes the figures as JSON where asked to.

    Raises:
      BenchmarkError: vLLM is not installed, or a round failed.
    """
    parser = bench_parser("slow_rewards", __doc__)
    parser.add_argument("--groups", type=positive, default=48, help="prompts of a round (default 48)")
    parser.add_argument("--group-size", type=positive, default=8, help="answers to a prompt (default 8)")
    parser.add_argument("--tokens", type=positive, default=256, help="of each answer (default 256)")
    parser.add_argument("--concurrency", type=positive, default=8, help="prompts sampled at a time (default 8)")
    parser.add_argument("--places", type=positive, default=16, help="prompts under way at a time (default 16)")
    parser.add_argument("--scored", type=positive, default=64, help="answers scored at a time (default 64)")
    parser.add_argument("--rounds", type=positive, default=5, help="default 5")
    given = parser.parse_args(argv)
    hardware, out = this_hardware(), console()
    out.print(str(hardware), highlight=False, soft_wrap=True)
    collect_garbage_less_often()
    work = Work(given.groups, given.group_size, given.tokens, given.concurrency, given.places, given.scored)
    with sides_progress((given.rounds + 1) * len(REWARDS)) as done, tempfile.TemporaryDirectory() as folder:
        sampled = asyncio.run(measure(work, given.rounds, Path(folder), done))
    found = figures(sampled)
    out.print(table(found))
    relative = found["tokens_per_s"][RATIO]
    met = "met" if relative.median >= AIM else "NOT met"
    out.print(f"tokens per second beside a slow reward: {relative.show()} (aim {AIM}): {met}", highlight=False)
    if given.json is not None:
        results = {name: {side: asdict(value) for side, value in sides.items()} for name, sides in found.items()}
        write_json(given.json, "slow_rewards", hardware, asdict(work) | {"rounds": given.rounds}, results)
        out.print(f"wrote {given.json}", highlight=False)
