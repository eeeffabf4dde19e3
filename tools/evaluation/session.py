"""One evaluation from suites to results: what it reads and starts, in which order, and what it leaves in its folder."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from learner_jax.runtime import write_whole
from serving_bridge.processes import sole
from serving_bridge.settings import ServingSettings
from serving_bridge.vllm import VllmClient
from tools.evaluation.answers import FILE, AnswerLog
from tools.evaluation.asking import Model
from tools.evaluation.contamination import Training, overlaps
from tools.evaluation.endpoint import Endpoint, EndpointSettings
from tools.evaluation.errors import SuiteError
from tools.evaluation.examine import examine, prompts
from tools.evaluation.problems import OpenSuite, open_suite
from tools.evaluation.replica import FolderPrompts, ReplicaModel, served
from tools.evaluation.results import suite_result, write_results
from tools.evaluation.sources import Source, model_folder
from tools.evaluation.suites import Suite, load_suite

TIMING = "timing.json"


@dataclass(frozen=True)
class Plan:
    """What is to be evaluated, on what, and where the results go.

    Attributes:
      source: weights that a server of its own is started on, or the endpoint that is asked.
      serving: how that server is started; None: by defaults, with as long a context as the suites need.
      concurrency: answers in work at a time.
      paced: suite -> at most so many of its answers in work at a time, where their time is to be compared.
      training: prompts that the suites may overlap with; None: not looked at.
    """

    suites: Sequence[str | Suite]
    source: Source | EndpointSettings
    out: Path
    serving: ServingSettings | None = None
    concurrency: int = 64
    paced: Mapping[str, int] = field(default_factory=dict)
    max_model_len: int | None = None
    training: Training | None = None


@dataclass(frozen=True)
class Watch:
    """Who is told how it goes; by default nobody.

    Attributes:
      say: called with sentences.
      begin: called with a suite's name and the number of its answers.
      step: called after each answer.
    """

    say: Callable[[str], None] = lambda _: None
    begin: Callable[[str, int], None] = lambda _, __: None
    step: Callable[[], None] = lambda: None


def run_plan(plan: Plan, watch: Watch | None = None) -> dict[str, Any]:
    """Evaluates, writes the results and returns what results.json holds. The same plan goes on where one was stopped.

    Raises:
      WeirError: what can't be used is told before any server starts, as far as it can be known then.
    """
    watch = watch or Watch()
    started, begun_s = time.time(), time.monotonic()
    with ExitStack() as stack:
        suites = [stack.enter_context(closing(open_suite(suite))) for suite in _loaded(plan.suites)]
        more = _overlaps(plan, suites, watch)
        os.umask(0o077)  # what users ask and models answer is for this user alone
        plan.out.mkdir(parents=True, exist_ok=True)
        stack.enter_context(sole(plan.out / ".lock", f"evaluation in {plan.out}", hint="stop that one first"))
        log = AnswerLog(plan.out / FILE)
        stack.callback(log.close)
        known = len(log)
        if known:
            watch.say(f"going on: {known} answers are kept in {plan.out / FILE}")
        tree = asyncio.run(_evaluated(plan, suites, log, watch, more))
        seconds = time.monotonic() - begun_s
        timing = {
            "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started)),
            "wall_s": round(seconds, 3),
            "answers_asked": len(log) - known,
            "answers_kept_before": log.num_found,
        }
        write_whole(plan.out / TIMING, json.dumps(timing, indent=1) + "\n")
    return tree


def _loaded(given: Sequence[str | Suite]) -> list[Suite]:
    suites = [one if isinstance(one, Suite) else load_suite(one) for one in given]
    names = [suite.name for suite in suites]
    if twice := [name for name in names if names.count(name) > 1]:
        raise SuiteError(f"two suites have the name {twice[0]!r}; results need one name for each")
    return suites


def _overlaps(plan: Plan, suites: Sequence[OpenSuite], watch: Watch) -> list[dict[str, Any]]:
    if plan.training is None:
        return [{} for _ in suites]
    watch.say(f"comparing with the training prompts of {plan.training.source}")
    return [{"contamination": overlap.as_fields()} for overlap in overlaps(suites, plan.training)]


async def _evaluated(
    plan: Plan, suites: Sequence[OpenSuite], log: AnswerLog, watch: Watch, more: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    results = []
    async with _model(plan, suites, watch) as model:
        for suite, fields in zip(suites, more, strict=True):
            watch.begin(suite.name, len(suite.problems) * suite.settings.samples)
            at_a_time = min(plan.concurrency, plan.paced.get(suite.name, plan.concurrency))
            judged = await examine(model, suite, log, concurrency=at_a_time, progress=watch.step)
            results.append(suite_result(suite, judged, **fields))
        identity = model.identity
    return write_results(plan.out, identity, results)


@asynccontextmanager
async def _model(plan: Plan, suites: Sequence[OpenSuite], watch: Watch) -> AsyncIterator[Model]:
    """The model, after all prompts were found to be askable."""
    async with AsyncExitStack() as stack:
        if isinstance(plan.source, EndpointSettings):
            # No proxy from the environment: who sees prompts and key is who the address names.
            connector = aiohttp.TCPConnector(limit=0)
            session = await stack.enter_async_context(aiohttp.ClientSession(connector=connector, trust_env=False))
            endpoint = Endpoint(plan.source, session)
            _askable(endpoint, suites)
            yield endpoint
            return
        watch.say(f"reading the weights of {plan.source.path}")
        folder = stack.enter_context(model_folder(plan.source, plan.out))
        family, limit = plan.source.family, plan.max_model_len or (plan.serving and plan.serving.max_model_len)
        checked = FolderPrompts.of(folder.path, max_model_len=limit or None, family=family)
        _askable(checked, suites)
        settings = plan.serving or ServingSettings(max_model_len=limit or _context(checked, suites))
        settings = settings.model_copy(update={"dtype": folder.dtype, "max_model_len": limit or settings.max_model_len})

        async def start() -> VllmClient:
            watch.say("starting vLLM")
            log_path = plan.out / "logs" / "server.log"
            return await stack.enter_async_context(served(folder.path, settings, log_path=log_path, family=family))

        yield ReplicaModel(folder.identity, checked, start)


def _askable(model: Any, suites: Sequence[OpenSuite]) -> None:
    for suite in suites:
        for _ in prompts(model, suite):
            pass


def _context(checked: FolderPrompts, suites: Sequence[OpenSuite]) -> int:
    """Tokens that a server needs: of the longest prompt with its answer; of dialogs, as many as the model has."""
    if any(suite.environment is not None for suite in suites):
        return checked.max_model_len
    return checked.longest
