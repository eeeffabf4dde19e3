"""One way to play both kinds of environments: in threads those that block, on the event loop those that wait.

Whatever goes wrong in an environment is a failed verdict, which ends the episode and is no sample.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Sequence, Sized
from concurrent.futures import Executor
from dataclasses import replace
from functools import partial
from typing import Protocol

from rewards.contracts import AsyncEnvironment, Environment, EpisodeState, Outcome, Problem, Reply, is_async
from serving_bridge.evaluation import sound, unjudged
from serving_bridge.vllm import Completion

#: bound on the end of an episode
_CLOSE_S = 10.0
#: one thread judges a group's answers so long; then others help
_ALONE_S = 0.01
#: (answer, whether there is no room for another turn) -> the answer as environments read it
Read = Callable[[Completion, bool], Reply]


class Dialog(Protocol):
    """One episode while it is played."""

    async def step(self, answers: Sequence[Completion], *, is_last: bool) -> list[Outcome]:
        """What each answer led to; those that are not judged in time have a failed verdict."""

    async def observe(self, outcome: Outcome) -> Outcome:
        """The outcome with what the policy is told next; nothing ends the episode."""

    async def close(self) -> None:
        """Frees what the episode holds; does not raise."""


class Dialogs:
    """Begins episodes.

    Args:
      scoring: threads in which environments run that block; the event loop goes on meanwhile.
      read: called in these threads, too.
      limit_s: bound on each step (`rollout.reward_timeout_s`).
      num_helpers: of these threads, so many may help with groups that have one already; the others are left for
        groups that have none.
      count: "environment_close_errors" are counted here.
    """

    def __init__(
        self,
        environment: Environment | AsyncEnvironment,
        scoring: Executor,
        read: Read,
        *,
        limit_s: float,
        num_helpers: int,
        count: Counter[str],
    ) -> None:
        self._environment = environment
        self._helpers = asyncio.Semaphore(num_helpers)
        self._scoring, self._read = scoring, read
        self._limit_s, self._count = limit_s, count
        self.waits = is_async(environment)

    async def begin(self, problem: Problem) -> Dialog:
        """An episode before its first answer."""
        if not self.waits:
            return _Blocking(
                self._environment,  # type: ignore[arg-type]
                problem,
                self._scoring,
                self._read,
                self._limit_s,
                self._helpers,
            )
        dialog = _Waiting(self._environment, problem, self._read, self._limit_s, self._count)  # type: ignore[arg-type]
        await dialog.reset()
        return dialog


class _Blocking:
    """Plays an environment that is free of state.

    Args:
      helpers: places in threads for the answers of groups that one thread alone is slow with.
    """

    def __init__(
        self,
        environment: Environment,
        problem: Problem,
        scoring: Executor,
        read: Read,
        limit_s: float,
        helpers: asyncio.Semaphore,
    ) -> None:
        self._environment = environment
        self._state = environment.reset(problem)
        self._scoring, self._read, self._limit_s = scoring, read, limit_s
        self._helpers = helpers

    async def step(self, answers: Sequence[Completion], *, is_last: bool) -> list[Outcome]:
        todo = deque(enumerate(answers))
        judged: dict[int, Outcome] = {}
        try:
            async with asyncio.timeout(self._limit_s):
                await self._by_threads(partial(self._judge, todo, is_last, judged), todo)
        except TimeoutError:
            todo.clear()  # a thread that comes back finds nothing more to do
        late = unjudged(self._state, "timeout", _late(self._limit_s))
        outcomes = [judged.get(number, late) for number in range(len(answers))]
        self._state = outcomes[-1].state
        return outcomes

    async def _by_threads(self, judge: Callable[[], None], todo: Sized) -> None:
        """By one, and by others too if it does not get through at once: quick verdicts cost less than threads do."""
        loop = asyncio.get_running_loop()
        running = [loop.run_in_executor(self._scoring, judge)]
        await asyncio.wait(running, timeout=_ALONE_S)

        async def help_it() -> None:
            async with self._helpers:
                if todo:
                    running.append(loop.run_in_executor(self._scoring, judge))
                    await running[-1]

        helpers = [asyncio.create_task(help_it()) for _ in range(len(todo))]
        try:
            await running[0]  # from then on all answers are taken, and no helper begins
            await asyncio.gather(*running)
        finally:
            for helper in helpers:
                helper.cancel()
            await asyncio.gather(*helpers, return_exceptions=True)

    def _judge(self, todo: deque[tuple[int, Completion]], is_last: bool, judged: dict[int, Outcome]) -> None:
        """Takes answers as long as there are any; each outcome is in `judged` as soon as it is known."""
        state = self._state
        while todo:
            try:
                number, answer = todo.popleft()
            except IndexError:  # another thread was faster
                return
            try:
                outcome = sound(self._environment.step(state, self._read(answer, is_last)))
            except (Exception, SystemExit) as error:  # noqa: BLE001  (isolation: one answer must not end the rollouts)
                outcome = unjudged(state, "error", f"{type(error).__name__}: {error}")
            judged[number] = outcome

    async def observe(self, outcome: Outcome) -> Outcome:
        return unjudged(outcome.state, "error", "the environment goes on, and says nothing")

    async def close(self) -> None:
        pass


class _Waiting:
    """Plays an environment of coroutines."""

    def __init__(
        self, environment: AsyncEnvironment, problem: Problem, read: Read, limit_s: float, count: Counter[str]
    ) -> None:
        self._environment = environment
        self._state = EpisodeState(problem)
        self._read, self._limit_s, self._count = read, limit_s, count
        self._broken: Outcome | None = None
        self._is_open = False

    async def reset(self) -> None:
        """Has the environment begin; if it can't, the first answer will get a failed verdict."""

        async def begun() -> Outcome:
            self._state = await self._environment.reset(self._state.problem)
            self._is_open = True
            return Outcome(0.0, {}, "fail", "", self._state)

        outcome = await self._bounded(begun)
        self._broken = outcome if outcome.reward is None else None

    async def step(self, answers: Sequence[Completion], *, is_last: bool) -> list[Outcome]:
        if self._broken is not None:
            return [self._broken] * len(answers)
        (answer,) = answers

        async def judged() -> Outcome:
            return sound(await self._environment.step(self._state, self._read(answer, is_last)))

        outcome = await self._bounded(judged)
        self._state = outcome.state
        return [outcome]

    async def observe(self, outcome: Outcome) -> Outcome:
        async def seen() -> Outcome:
            observe = getattr(self._environment, "observe", None)
            if observe is None:
                return unjudged(self._state, "error", "an outcome has the observation (), but there is no `observe`")
            said = await observe(self._state)
            told = said if isinstance(said, str) else tuple(said)
            return replace(outcome, observation=told or None)

        return await self._bounded(seen)

    async def close(self) -> None:
        if not self._is_open:
            return
        self._is_open = False
        try:
            async with asyncio.timeout(_CLOSE_S):
                await self._environment.close(self._state)
        except (Exception, SystemExit):  # noqa: BLE001  (isolation: the episode is over)
            self._count["environment_close_errors"] += 1

    async def _bounded(self, work: Callable[[], Awaitable[Outcome]]) -> Outcome:
        try:
            async with asyncio.timeout(self._limit_s) as deadline:
                return await work()
        except TimeoutError as error:
            reason = _late(self._limit_s) if deadline.expired() else f"TimeoutError: {error}"
            return unjudged(self._state, "timeout", reason)
        except (Exception, SystemExit) as error:  # noqa: BLE001  (isolation: one episode must not end the rollouts)
            return unjudged(self._state, "error", f"{type(error).__name__}: {error}")


def _late(limit_s: float) -> str:
    return (
        f"no verdict after {limit_s:g} s (rollout.reward_timeout_s); the verifier hangs, or "
        f"rollout.reward_threads are too few"
    )
