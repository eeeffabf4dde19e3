"""One answer to each held-out problem, asked of a replica and judged by the task."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import Executor
from typing import Any

from rewards.contracts import Problem, RewardRequest, RewardResult, Task, failed
from serving_bridge.evaluation.figures import Examined, versions_of
from serving_bridge.evaluation.skill import PromptEncoder
from serving_bridge.settings import VLLM_PRIORITY
from serving_bridge.vllm import Completion, ReplicaError, VllmClient

#: Answers of together so many tokens at most are asked for in one request: for short ones a request costs more than
#: they do, and of long ones all would wait for the longest.
_REQUEST_TOKENS = 256
#: tries of a request that a replica fails or aborts, and the pause before the second
_TRIES, _FIRST_RETRY_S = 4, 0.5


class SingleAnswers:
    """Asks for one answer to each problem; a `Play`.

    Requests that fail in a way that may pass are tried again; an answer is never made up for one that did not come.

    Args:
      temperature: of the answers; 0 is greedy.
      timeout_s: bound on a request.
      concurrency: answers asked for, and judged, at a time.
      scoring: threads in which answers are scored; the event loop's own if None.
      reward_timeout_s: bound on a verdict, the wait for a thread included.
    """

    def __init__(
        self,
        task: Task,
        encoder: PromptEncoder,
        *,
        max_tokens: int,
        timeout_s: float,
        temperature: float = 0.0,
        concurrency: int = 64,
        scoring: Executor | None = None,
        reward_timeout_s: float = 600.0,
    ) -> None:
        self._task, self._tokenizer = task, encoder.tokenizer
        self._scoring, self._reward_timeout_s = scoring, reward_timeout_s
        self._concurrency = concurrency
        self._at_once = max(1, min(concurrency, _REQUEST_TOKENS // max_tokens))
        self._parameters = {
            "max_tokens": max_tokens,
            "greedy": temperature == 0,
            "temperature": temperature or 1.0,
            "stop_token_ids": self._tokenizer.eos_ids,
            "timeout_s": timeout_s,
        }

    async def __call__(self, client: VllmClient, asked: Sequence[tuple[Problem, list[int]]]) -> list[Examined]:
        """The answers, judged, in order. Raises `ReplicaError` where the replica failed for good."""
        limit = asyncio.Semaphore(self._concurrency // self._at_once)
        # A verdict's time begins when it is asked for: a queue of verdicts without bound would run some out of it.
        judging = asyncio.Semaphore(self._concurrency)

        async def examined(part: Sequence[tuple[Problem, list[int]]]) -> list[Examined]:
            async with limit:
                answers = await ask_each(client, [prompt for _, prompt in part], **self._parameters)
            pairs = zip(part, answers, strict=True)
            return await asyncio.gather(*(self._judged(problem, answer, judging) for (problem, _), answer in pairs))

        parts = [asked[first : first + self._at_once] for first in range(0, len(asked), self._at_once)]
        return [one for part in await asyncio.gather(*map(examined, parts)) for one in part]

    async def _judged(self, problem: Problem, answer: Completion, judging: asyncio.Semaphore) -> Examined:
        text = self._tokenizer.decode(answer.tokens.tolist())
        request = RewardRequest(problem, text, answer.finish_reason)
        async with judging:
            result = await self._verdict(request)
        return Examined(problem, text, result, answer.finish_reason == "length", versions_of([answer]))

    async def _verdict(self, request: RewardRequest) -> RewardResult:
        """The verdict, a failed one if the verifier raises or takes too long."""
        work = asyncio.get_running_loop().run_in_executor(self._scoring, _score, self._task, request)
        try:
            async with asyncio.timeout(self._reward_timeout_s):
                return await work
        except TimeoutError:
            return failed(f"no verdict after {self._reward_timeout_s:g} s (rollout.reward_timeout_s)", "timeout")


async def ask_each(client: VllmClient, prompts: Sequence[Sequence[int]], **parameters: Any) -> list[Completion]:
    """One whole answer to each prompt, with an evaluation's priority; failures that may pass are tried again.

    Args:
      parameters: of `VllmClient.generate_each`.

    Raises:
      ReplicaError: all tries are used up, or trying again would not help.
    """
    attempt = 1
    while True:
        try:
            return await client.generate_each(prompts, priority=VLLM_PRIORITY["evaluation"], **parameters)
        except ReplicaError as error:
            if not error.retryable or attempt == _TRIES:
                raise
            await asyncio.sleep(_FIRST_RETRY_S * 2 ** (attempt - 1))
            attempt += 1


def _score(task: Task, request: RewardRequest) -> RewardResult:
    try:
        return task.score(request)
    except (Exception, SystemExit) as error:  # noqa: BLE001  (isolation: one answer must not end the evaluation)
        return failed(f"{type(error).__name__}: {error}")
