"""What others do to a user's latency: a neighbour beyond its quota, a learner at work, rollouts on the same replica.

python -m tools.bench isolation [--seconds 8] [--rounds 7] [--per-second 4] [--tokens 16] [--rollouts 32]
                                [--sides NAME ...] [--model DIR] [--json PATH]

Real vLLM: one replica and the gateway, both on the first core. A user asks at random moments, alone or beside:

  alone again        nothing: how far the ratio is from 1 by chance
  within quota       another tenant sends what its quota allows
  neighbour          that tenant sends 100 times its quota
  learner            GRPO steps without end on the second core
  learner restarts   the same learner, killed and started again every five seconds
  rollouts           so many answers for training at a time on the same replica, at training's priority
  as users           the same answers at users' priority: what the user's latency and training's tokens would be

Blocks of all sides take turns in each round, and each round begins with another one. In a round the user asks at the
same moments on all sides. A ratio is the 95th percentile of all answers beside something over that of all answers
alone, "alone again" included; its own is over "alone". The range is the 10th to the 90th percentile over rounds that
are drawn anew (bootstrap). A learner that is dead is the user alone. `--sides` names those to measure, beside the user
alone.

"others" are cores that programs took which are no part of this, on both and on the first. A learner leaves them the
first one alone. A block in which they had more than 0.1 of a core in all is left out; where none is left, all count.
A ratio is of the rounds in which neither block was left out.

A user's own machine does nothing else, so the program that asks goes first on the second core (SCHED_RR, where the
system allows it). How late it still is counts as latency; "late" is the 95th percentile of that.

Not covered: networks, GPUs, several replicas, and long prompts.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import psutil

from configs.load import load_config
from serving_bridge.settings import VLLM_PRIORITY
from serving_bridge.text import load_tokenizer
from serving_bridge.weights import VersionHeader, VersionWriter, WeightStore
from tools.assembly import RunPaths, build_keys, build_registry, create_model, registered_run
from tools.bench import BenchmarkError
from tools.bench.gateway.blocks import (
    AGAIN,
    ALONE,
    AS_USERS,
    LEARNER,
    NEIGHBOUR,
    RESTARTS,
    ROLLOUTS,
    SIDES,
    WITHIN,
    Block,
    ratio_of,
    table_of,
)
from tools.bench.gateway.bystanders import Bystanders, machine_cpu, own_cpu
from tools.bench.gateway.client import first_on_core, lateness
from tools.bench.gateway.deployment import (
    START_S,
    check_alive,
    cpu_of,
    gateway_running,
    make_deployment,
    program_running,
)
from tools.bench.gateway.disturbance import Heard, Learner, Place, asking, rollouts
from tools.bench.learner import Shape
from tools.bench.timing import (
    console,
    json_path,
    positive,
    progress,
    this_hardware,
    write_json,
)
from tools.command_line import CommandParser

#: most that the 95th percentile may grow
AIMS = {NEIGHBOUR: 1.10, LEARNER: 1.05, RESTARTS: 1.05, ROLLOUTS: 1.15}
_QUOTA_PER_MINUTE, _TIMES = 60, 100
_NO_LIMITS = {"requests_per_minute": 10**6, "tokens_per_minute": 10**9, "concurrency": 1000}
_QUOTA = {"requests_per_minute": _QUOTA_PER_MINUTE, "request_burst": 5}
_SERVING = ("serving.dtype=float32", "learner.publish_dtype=float32")


def main(argv: Sequence[str]) -> None:
    """Measures, prints a table and the aims, and writes them as JSON where asked to."""
    parser = CommandParser(
        prog="python -m tools.bench isolation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seconds", type=positive, default=8, help="of a block (default 8)")
    parser.add_argument("--rounds", type=positive, default=7, help="turns of each side (default 7)")
    parser.add_argument("--per-second", type=positive, default=4, help="requests of the user (default 4)")
    parser.add_argument("--tokens", type=positive, default=16, help="of an answer (default 16)")
    parser.add_argument("--rollouts", type=positive, default=32, help="answers for training at a time (default 32)")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=SIDES, metavar="NAME", help="by default all")
    parser.add_argument("--model", type=Path, default=None, help="Hugging Face folder; by default a small random one")
    parser.add_argument("--json", type=json_path, metavar="PATH", help="write the figures to this file too")
    given = parser.parse_args(argv)
    if len(os.sched_getaffinity(0)) < 2:
        raise BenchmarkError("users and the learner need a core each: run it where two are free")
    hardware, out = this_hardware(), console()
    out.print(str(hardware), highlight=False, soft_wrap=True)
    with tempfile.TemporaryDirectory(prefix="weir-bench-") as folder:
        rounds = _measured(Path(folder), given)
    out.print(table_of(rounds))
    for name, aim in AIMS.items():
        if name not in rounds[0]:
            continue
        found = ratio_of(rounds, name).median
        out.print(f"{name}: {found:.2f}, at most {aim:.2f} is the aim: {'reached' if found <= aim else 'not reached'}")
    out.print(f"load at the end {os.getloadavg()[0]:.1f}", highlight=False)
    if given.json is not None:
        settings = {key: str(value) for key, value in vars(given).items() if key != "json"}
        results = [{name: asdict(block) for name, block in blocks.items()} for blocks in rounds]
        write_json(given.json, "isolation", hardware, settings, results)
        out.print(f"wrote {given.json}", highlight=False)


def _measured(folder: Path, given: argparse.Namespace) -> list[dict[str, Block]]:
    """Blocks by side, for each round."""
    first, second = sorted(os.sched_getaffinity(0))[:2]
    model = given.model.absolute() if given.model is not None else _small_model(folder / "model")
    tenants: dict[str, Mapping[str, Any]] = {"user": _NO_LIMITS, "neighbour": _QUOTA}
    paths, keys = make_deployment(folder, model, tenants, _SERVING)
    _publish(paths, model)
    with program_running("tools.serve", paths, core=first) as (fleet, log), gateway_running(paths, core=first) as found:
        _until_served(paths, fleet, log)
        learner = Learner(folder, second)
        try:
            with first_on_core(second):
                return asyncio.run(
                    _rounds(paths, Serving(found[0], fleet, first), Place(found[1], _eos(model)), keys, learner, given)
                )
        finally:
            learner.kill()


async def _rounds(
    paths: RunPaths,
    serving: Serving,
    place: Place,
    keys: Mapping[str, str],
    learner: Learner,
    given: argparse.Namespace,
) -> list[dict[str, Block]]:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        sampling = partial(rollouts, session, _replica_of(paths), at_once=given.rollouts, eos=place.eos)
        asks = partial(asking, session, place, tokens=given.tokens)
        beside = partial(_neighbour, partial(asks, keys["neighbour"], for_s=given.seconds + 1.0, seed=-1))
        sides: dict[str, Callable[[], AbstractAsyncContextManager[Seen]]] = {
            ALONE: _nothing,
            AGAIN: _nothing,
            WITHIN: partial(beside, times=1),
            NEIGHBOUR: partial(beside, times=_TIMES),
            LEARNER: partial(_training, learner.working),
            RESTARTS: partial(_training, learner.restarting),
            ROLLOUTS: partial(_sampled, partial(sampling, priority=VLLM_PRIORITY["training"])),
            AS_USERS: partial(_sampled, partial(sampling, priority=VLLM_PRIORITY["paid"])),
        }
        user = partial(asks, keys["user"], per_second=given.per_second)
        await _until_answered(user)
        names, found = [name for name in sides if name in {ALONE, *given.sides}], list[dict[str, Block]]()
        with progress() as bar:
            task = bar.add_task("blocks", total=len(names) * given.rounds)
            for number in range(given.rounds):
                start, blocks = number % len(names), dict[str, Block]()
                for name in names[start:] + names[:start]:
                    ask = partial(user, for_s=given.seconds, seed=number)
                    blocks[name] = await _block(name, sides[name], ask, serving)
                    bar.update(task, advance=1, description=name)
                found.append(blocks)
    return found


async def _block(
    name: str,
    side: Callable[[], AbstractAsyncContextManager[Seen]],
    ask: Callable[[], Awaitable[Heard]],
    serving: Serving,
) -> Block:
    """The user's answers beside one side."""
    async with side() as seen, lateness() as late_s:
        began_s, cpu_s = time.monotonic(), cpu_of(serving.gateway)
        others, on_first = Bystanders(), serving.bystanders()
        heard = await ask()
        seen.end(wall_s := time.monotonic() - began_s)
        share = (cpu_of(serving.gateway) - cpu_s) / wall_s
        others_cores, others_first = others.cores(), on_first.cores()
    if set(heard.statuses) != {200} or len(heard.seconds) < 5:
        raise BenchmarkError(f"{name}: the user's answers were {dict(heard.statuses)}")
    late_ms = 1000 * float(np.percentile(late_s, 95))
    answers_ms = tuple(1000 * seconds for seconds in heard.seconds)
    counted = seen.admitted, seen.refused, seen.training_per_s
    return Block(answers_ms, late_ms, share, others_cores, others_first, *counted)


@dataclass(frozen=True)
class Serving:
    """What answers the user: all of it on one core."""

    gateway: psutil.Process
    fleet: psutil.Process
    core: int

    def bystanders(self) -> Bystanders:
        """Programs that take of its core, and are no part of it."""
        return Bystanders(partial(machine_cpu, self.core), partial(own_cpu, self.gateway, self.fleet))


@dataclass
class Seen:
    """What was seen of who disturbs; complete once the side has ended.

    Attributes:
      ended: tokens of each answer for training that has ended.
    """

    ended: Sequence[int] = ()
    admitted: int = 0
    refused: int = 0
    training_per_s: float = 0.0

    def end(self, wall_s: float) -> None:
        """The user has got all answers, after so many seconds."""
        self.training_per_s = sum(self.ended) / wall_s


@asynccontextmanager
async def _nothing() -> AsyncIterator[Seen]:
    yield Seen()


@asynccontextmanager
async def _training(learner: Callable[[], AbstractAsyncContextManager[None]]) -> AsyncIterator[Seen]:
    async with learner():
        yield Seen()


@asynccontextmanager
async def _sampled(sampling: Callable[[], AbstractAsyncContextManager[Sequence[int]]]) -> AsyncIterator[Seen]:
    async with sampling() as ended:
        yield Seen(ended)


@asynccontextmanager
async def _neighbour(ask: Callable[..., Coroutine[Any, Any, Heard]], *, times: int) -> AsyncIterator[Seen]:
    """A tenant that asks so many times as often as it may."""
    seen = Seen()
    task = asyncio.ensure_future(ask(per_second=times * _QUOTA_PER_MINUTE / 60))
    await asyncio.sleep(0.5)
    try:
        yield seen
    finally:
        statuses = (await task).statuses
        seen.admitted, seen.refused = statuses[200], statuses[429]
        if set(statuses) - {200, 429} or (times > 1 and not statuses[429]):
            raise BenchmarkError(f"the neighbour's answers were {dict(statuses)}, expected most to be 429")


async def _until_answered(user: Callable[..., Any]) -> None:
    """Waits for the first answers, and warms up."""
    end_s = time.monotonic() + START_S
    while set((await user(for_s=2.0, seed=-2)).statuses) != {200}:
        if time.monotonic() > end_s:
            raise BenchmarkError("the gateway does not answer")


def _until_served(paths: RunPaths, fleet: psutil.Process, log: Path) -> None:
    registry, end_s = build_registry(paths), time.monotonic() + 2 * START_S
    while not registry.ready():
        check_alive(fleet, log, end_s)
        time.sleep(0.2)


def _replica_of(paths: RunPaths) -> Callable[[], tuple[str, str]]:
    """Address of the replica, and the token for its answers."""
    registry, keys = build_registry(paths), build_keys(load_config(paths.config, []), paths)
    row = registry.ready()[0]
    found = row.url, keys.token("inference", row.url, row.start)
    return lambda: found


def _small_model(folder: Path) -> Path:
    sizes = Shape()
    shape = _Sizes(sizes.hidden, sizes.intermediate, sizes.layers, sizes.heads, sizes.kv_heads, sizes.head_dim)
    create_model(folder, shape, ["Once upon a time there was a fox and a dog 0123456789-"], seed=0)
    return folder


@dataclass(frozen=True)
class _Sizes:
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int = 256
    rope_theta: float = 1e6


def _eos(model: Path) -> int:
    found = load_tokenizer(model).eos_ids
    return int(found[0])


def _publish(paths: RunPaths, model: Path) -> None:
    """The model as the run's first version."""
    found = registered_run.of_folder(model, parent=None, note="")
    store = WeightStore(paths.weights, load_config(paths.config, []).run.name)
    VersionWriter(store).publish_full(
        found.tensors, found.manifest.tensors, VersionHeader(0, found.manifest.golden, None)
    )
