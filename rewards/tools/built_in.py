"""The tools that come with Weir, and a user's own: from names in the settings to what can be called."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Mapping
from concurrent.futures import Executor
from functools import partial
from typing import Any

from learner_jax.runtime import Door, DoorError
from rewards.code.sandbox import SandboxError, open_pool
from rewards.contracts import TaskError, ToolDefinition
from rewards.sandbox import VerifierError, VerifierPool, VerifierStartError, to_json, user_pool
from rewards.settings import EpisodeSettings, TaskSettings
from rewards.tools import calculator, python_program, search
from rewards.tools.corpus import read_corpus
from rewards.tools.definitions import definition_of, distinct
from rewards.tools.search import Index, Search
from rewards.tools.toolbox import BrokenToolError, Run, Tool, ToolError

TOOL = Door(
    kind="tool",
    setting="task.episode.tools",
    built_in={
        "calculator": "rewards.tools.built_in:calculator_definition",
        "python": "rewards.tools.built_in:python_definition",
        "search": "rewards.tools.built_in:search_definition",
    },
)


def calculator_definition(settings: EpisodeSettings) -> ToolDefinition:
    return calculator.DEFINITION


def python_definition(settings: EpisodeSettings) -> ToolDefinition:
    return python_program.DEFINITION


def search_definition(settings: EpisodeSettings) -> ToolDefinition:
    return search.definition(list(settings.corpora))


def definitions(settings: EpisodeSettings) -> tuple[ToolDefinition, ...]:
    """What the policy is told of the tools that the settings name; nothing is started.

    Raises:
      DoorError: there is no such tool, or its arguments can't be said as JSON schema.
    """
    return distinct([_definition(name, settings) for name in settings.tools], what="task.episode.tools")


def open_tools(settings: TaskSettings, threads: Executor) -> list[Tool]:
    """The tools that the settings name, ready to be called.

    Args:
      threads: for tools that block.

    Raises:
      DoorError, TaskError: one can't be used.
    """
    episode = settings.episode
    pairs = zip(episode.tools, definitions(episode), strict=True)
    return [_tool(name, definition, settings, threads) for name, definition in pairs]


def _definition(name: str, settings: EpisodeSettings) -> ToolDefinition:
    found = TOOL.load(name)
    if name in TOOL.built_in:
        definition: ToolDefinition = found(settings)
        return definition
    what = f"task.episode.tools {name!r}"
    if not inspect.isfunction(found):
        raise DoorError(f"{what} is a {type(found).__name__}, expected a function with annotated arguments")
    return definition_of(found, name=found.__name__, skip=0, hidden=("row",), what=what)


def _tool(name: str, definition: ToolDefinition, settings: TaskSettings, threads: Executor) -> Tool:
    match name:
        case "calculator":
            return Tool(definition, _calculate)
        case "python":
            return _python(definition, settings, threads)
        case "search":
            return Tool(definition, _search(settings.episode, threads))
    pool = user_pool(
        "rewards.sandbox.tool_function",
        TOOL.target(name),
        confined=settings.score_confined,
        deadline_s=settings.episode.tool_timeout_s,
        num_workers=settings.score_processes,
    )
    return Tool(definition, _own(pool, threads), keeps_time=True, end=pool.close)


async def _calculate(arguments: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    try:
        return calculator.calculate(arguments["expression"])
    except calculator.CalculatorError as error:
        raise ToolError(str(error)) from None


def _python(definition: ToolDefinition, settings: TaskSettings, threads: Executor) -> Tool:
    try:
        pool = open_pool(num_workers=settings.score_processes, sandbox=settings.sandbox)
    except SandboxError as error:
        raise TaskError(f"task.episode.tools 'python' can't run here: {error}") from None

    async def run(arguments: Mapping[str, Any], row: Mapping[str, Any]) -> str:
        work = partial(python_program.run_program, pool, deadline_s=settings.episode.tool_timeout_s)
        return await asyncio.get_running_loop().run_in_executor(threads, work, arguments["code"])

    return Tool(definition, run, keeps_time=True, end=pool.close)


def _search(settings: EpisodeSettings, threads: Executor) -> Run:
    indices = {
        name: Index(read_corpus(name, path), embeddings=settings.embeddings) for name, path in settings.corpora.items()
    }
    found = Search(indices, top_k=settings.top_k, column=settings.corpus_column)

    async def run(arguments: Mapping[str, Any], row: Mapping[str, Any]) -> Any:
        return await asyncio.get_running_loop().run_in_executor(threads, found.run, arguments, row)

    return run


def _own(pool: VerifierPool, threads: Executor) -> Run:
    def call(arguments: Mapping[str, Any], row: Mapping[str, Any]) -> str:
        request = {"arguments": to_json(arguments), "row": to_json(row)}
        try:
            verified = pool.call(request, key="tool")
            verified.judged_score  # noqa: B018  (raises where the function did)
        except VerifierStartError as error:
            raise BrokenToolError(str(error)) from None
        except VerifierError as error:
            raise ToolError(str(error)) from None
        return verified.observation or ""

    async def run(arguments: Mapping[str, Any], row: Mapping[str, Any]) -> str:
        return await asyncio.get_running_loop().run_in_executor(threads, call, arguments, row)

    return run
