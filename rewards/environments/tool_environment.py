"""A task with tools: the policy may call them for some turns, and its final answer is judged."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from rewards.contracts import EpisodeState, Outcome, Problem, Reply, RewardRequest, Task, ToolDefinition
from rewards.environments.final_answer import earned, without_citations
from rewards.settings import TaskSettings
from rewards.tools import Toolbox, open_tools, parse_calls

_THREADS = 16


@dataclass(frozen=True)
class _Memory:
    """What an episode has seen.

    Attributes:
      began_s: on the environment's clock.
      calls, failed: number of calls so far, and of those that were malformed or whose tool failed.
      found: ids of the documents that the policy was shown.
    """

    began_s: float
    calls: int = 0
    failed: int = 0
    found: frozenset[str] = frozenset()


class ToolEnvironment:
    """Plays a task with tools; implements `rewards.contracts.AsyncEnvironment`.

    An answer with calls is no final answer: its calls are run, and their results are told. An answer without calls is
    judged by the task. So is one that ends the episode for another reason, without its calls.
    """

    def __init__(self, task: Task, settings: TaskSettings, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._task, self._settings, self._clock = task, settings, clock
        episode = settings.episode
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="weir-tools")
        self._open = tools = open_tools(settings, self._threads)
        self._toolbox = Toolbox(
            tools,
            timeout_s=episode.tool_timeout_s,
            max_calls=episode.max_calls,
            max_characters=episode.result_characters,
        )
        self.tools: Sequence[ToolDefinition] = tuple(tool.definition for tool in tools)
        self._schemas = {tool.name: tool.parameters for tool in self.tools}
        self.version = f"{task.version}+tools:{','.join(episode.tools)}:{settings.turns}"
        self.max_turns = settings.turns

    async def reset(self, problem: Problem) -> EpisodeState:
        return EpisodeState(problem, memory=_Memory(self._clock()))

    async def step(self, state: EpisodeState, reply: Reply) -> Outcome:
        memory, episode = state.memory, self._settings.episode
        after = replace(state, turn=state.turn + 1)
        left_s = episode.wall_s - (self._clock() - memory.began_s)
        late = f"the episode took longer than {episode.wall_s:g} s (task.episode.wall_s)"
        if left_s <= 0:
            raise TimeoutError(late)
        parsed = parse_calls(reply.marked, episode.call_format, first=memory.calls, schemas=self._schemas)
        is_over = reply.is_last or reply.finish_reason != "stop" or after.turn >= self.max_turns
        if not parsed.calls or is_over:
            answer = parsed.content if parsed.calls else reply.text
            return await self._judged(after, memory, answer, reply.finish_reason)
        try:
            async with asyncio.timeout(left_s):
                results = await self._toolbox.run(parsed.calls, state.problem.metadata)
        except TimeoutError:
            raise TimeoutError(late) from None
        failed = sum(result.failed for result in results)
        seen = memory.found.union(*(result.documents for result in results))
        memory = replace(memory, calls=memory.calls + len(results), failed=memory.failed + failed, found=seen)
        messages = tuple(result.message for result in results)
        return Outcome(0.0 - episode.call_cost * failed, {}, "fail", messages, replace(after, memory=memory))

    async def close(self, state: EpisodeState) -> None:
        """Nothing is held between calls."""

    def end(self) -> None:
        """Ends the processes of tools."""
        for tool in self._open:
            tool.end()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _judged(self, state: EpisodeState, memory: _Memory, answer: str, finish_reason: str) -> Outcome:
        request = RewardRequest(state.problem, without_citations(answer, memory.found), finish_reason)
        result = await asyncio.get_running_loop().run_in_executor(self._threads, self._task.score, request)
        found = earned(result, answer, row=state.problem.metadata, found=memory.found, settings=self._settings.episode)
        if found.reward is None:
            return Outcome(None, {}, found.verdict, None, state, found.reasons)
        used = {"calls": float(memory.calls), "failed_calls": float(memory.failed), "turns": float(state.turn)}
        return Outcome(found.reward, {**found.parts, **used}, found.verdict, None, state, found.reasons)


def tools(task: Task, settings: TaskSettings) -> ToolEnvironment:
    """The environment with the tools that the settings name."""
    return ToolEnvironment(task, settings)
