"""Skill on held-out problems, measured through a vLLM replica, over those that were asked and judged alone."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import numpy as np

from learner_jax.runtime import WeirError
from rewards.contracts import (
    Message,
    Problem,
    RewardRequest,
    RewardResult,
    Task,
    ToolDefinition,
    failed,
    prompt_text,
)
from serving_bridge.evaluation.observations import fitted
from serving_bridge.evaluation.verdicts import reason_text
from serving_bridge.settings import VLLM_PRIORITY
from serving_bridge.text import Tokenizer
from serving_bridge.vllm import Completion, ReplicaError, VllmClient

#: Answers of together so many tokens at most are asked for in one request: for short ones a request costs more than
#: they do, and of long ones all would wait for the longest.
_REQUEST_TOKENS = 256
#: tries of a request that a replica fails or aborts, and the pause before the second
_TRIES, _FIRST_RETRY_S = 4, 0.5
#: share of answers without verdict from which an evaluation says that its figures are not to be trusted
_MANY = 0.1


class EvaluationError(WeirError, RuntimeError):
    """No skill can be told: nothing was asked, or nothing was judged; says why, and the setting to change."""

    can_heal = False


@dataclass(frozen=True)
class Sample:
    """One answer, for people to read.

    Attributes:
      score: None where the answer was not judged.
      verdict: as of `rewards.contracts.task.RewardResult`.
      reason: why it has this score, where the verifier says so.
      is_cut: whether it reached the longest length.
    """

    prompt: str
    answer: str
    expected: str
    score: float | None
    verdict: str
    reason: str = ""
    is_cut: bool = False


@dataclass(frozen=True)
class Evaluation:
    """Skill on held-out problems.

    Attributes:
      accuracy: share of the judged answers that the verifier passed.
      mean_score: mean of the verifier's scores of the same answers.
      num_problems: judged answers: what both are over. Problems are `num_wanted` altogether: these, the skipped ones,
        and those whose verdict failed.
      skipped: indices of problems that were not asked, since their prompts are too long.
      failed_verdicts: number of answers without verdict, by kind.
      failed_verdict_example: one of them; "" if there are none.
      num_cut: judged answers that were cut at the longest length.
      versions: oldest and newest policy version among the tokens; they differ if weights changed meanwhile.
      scores: of problem 0, 1, ...; None where it was skipped or not judged.
      samples: the first few answers.
      notes: what a reader of the figures must know, a sentence each.
      sources: of a task with several, by label: num_problems, accuracy and mean_score of the judged answers.
    """

    accuracy: float
    mean_score: float
    num_problems: int
    num_wanted: int
    skipped: tuple[int, ...]
    failed_verdicts: dict[str, int]
    failed_verdict_example: str
    num_cut: int
    versions: tuple[int, int]
    scores: tuple[float | None, ...]
    samples: tuple[Sample, ...]
    notes: tuple[str, ...]
    sources: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def as_fields(self) -> dict[str, Any]:
        return asdict(self)


class PromptEncoder:
    """Turns a problem, and what an environment says, into the token ids that the policy is given.

    Args:
      tools: that the environment declares; every prompt shows them.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        template: str,
        chat: bool,
        max_prompt_tokens: int,
        tools: Sequence[ToolDefinition] = (),
    ):
        self.tokenizer = tokenizer
        self._template = template
        self._chat = chat
        self.max_prompt_tokens = max_prompt_tokens
        self._tools = [tool.as_chat() for tool in tools]

    def text(self, problem: Problem) -> str:
        """The prompt, for people."""
        return prompt_text(problem, self._template)

    def tokens(self, problem: Problem) -> list[int]:
        """Token ids of the prompt, however many.

        Raises:
          TokenizerError: the prompt is made of messages, and there is no chat template, or it refuses them.
        """
        if isinstance(problem.prompt, str | None):
            return self.tokenizer.encode_prompt(self.text(problem), chat=self._chat, tools=self._tools)
        return self.tokenizer.encode_chat(problem.prompt, tools=[*self._tools, *problem.tools])

    def encode(self, problem: Problem) -> list[int] | None:
        """Token ids of the prompt, or None if they are more than `max_prompt_tokens`."""
        tokens = self.tokens(problem)
        return tokens if len(tokens) <= self.max_prompt_tokens else None

    def observation(self, said: str | Sequence[Message], *, after: int) -> list[int]:
        """Token ids of what is said after an answer that ended with token `after`, ready for the next one.

        Text is used as it is, and has its own length. Messages are made harmless, and cut to `max_prompt_tokens`.

        Raises:
          TokenizerError: the chat template can't show it.
        """
        if isinstance(said, str):
            return self.tokenizer.encode_observation(said, chat=self._chat, after=after)
        return fitted(said, partial(self._encoded, after=after), self.tokenizer, limit=self.max_prompt_tokens)

    def _encoded(self, messages: Sequence[Message], *, after: int) -> list[int]:
        if self._chat:
            return self.tokenizer.encode_continuation([message.as_chat() for message in messages], after=after)
        text = "".join(f"\n{message.content}\n" for message in messages)
        return self.tokenizer.encode_observation(text, chat=False, after=after)

    def marked(self, tokens: Sequence[int]) -> str:
        """Text of an answer with its special tokens, which mark the tool calls of some models."""
        return self.tokenizer.decode_marked(tokens)

    def supervised(self, problem: Problem, target: str) -> tuple[list[int], list[bool]]:
        """(tokens, loss mask) of the prompt followed by the answer to imitate."""
        return self.tokenizer.continued(self.tokens(problem), target, chat=self._chat)


async def evaluate(
    client: VllmClient,
    task: Task,
    encoder: PromptEncoder,
    *,
    num_problems: int,
    max_tokens: int,
    num_samples: int,
    timeout_s: float,
    temperature: float = 0.0,
    concurrency: int = 64,
    scoring: Executor | None = None,
    reward_timeout_s: float = 600.0,
) -> Evaluation:
    """Asks the first `num_problems` held-out problems, one answer each, and has them judged.

    Requests that fail in a way that may pass are tried again; an answer is never made up for one that did not come.

    Args:
      temperature: of the answers; 0 is greedy.
      timeout_s: bound on a request.
      scoring: threads in which answers are scored; the event loop's own if None.
      reward_timeout_s: bound on a verdict, the wait for a thread included.

    Raises:
      ReplicaError: the replica failed for good. An evaluation is all or nothing.
      EvaluationError: no problem could be asked, or no answer was judged.
    """
    at_once = max(1, min(concurrency, _REQUEST_TOKENS // max_tokens))
    # A verdict's time begins when it is asked for: a queue of verdicts without bound would run some of them out of it.
    limit, judging = asyncio.Semaphore(concurrency // at_once), asyncio.Semaphore(concurrency)

    answered = partial(
        _asked,
        client,
        max_tokens=max_tokens,
        greedy=temperature == 0,
        temperature=temperature or 1.0,
        stop_token_ids=encoder.tokenizer.eos_ids,
        timeout_s=timeout_s,
    )

    async def judged(problem: Problem, completion: Completion) -> _Examined:
        text = encoder.tokenizer.decode(completion.tokens.tolist())
        request = RewardRequest(problem, text, completion.finish_reason)
        async with judging:
            result = await _judged(task, request, scoring, reward_timeout_s)
        return _Examined(problem, completion, text, result)

    async def examined(asked: Sequence[tuple[Problem, list[int]]]) -> list[_Examined]:
        async with limit:
            answers = await answered([prompt for _, prompt in asked])
        return await asyncio.gather(*(judged(problem, a) for (problem, _), a in zip(asked, answers, strict=True)))

    problems = [task.problem("heldout", index) for index in range(num_problems)]
    prompts = [encoder.encode(problem) for problem in problems]
    asked = [(p, prompt) for p, prompt in zip(problems, prompts, strict=True) if prompt is not None]
    parts = [asked[first : first + at_once] for first in range(0, len(asked), at_once)]
    found = iter([one for part in await asyncio.gather(*map(examined, parts)) for one in part])
    return _evaluation([None if prompt is None else next(found) for prompt in prompts], encoder, num_samples)


@dataclass(frozen=True)
class _Examined:
    problem: Problem
    completion: Completion
    text: str
    result: RewardResult


async def _asked(client: VllmClient, prompts: Sequence[Sequence[int]], **parameters: Any) -> list[Completion]:
    """Whole answers; raises what the client does when all tries are used up, or trying again would not help."""
    attempt = 1
    while True:
        try:
            return await client.generate_each(prompts, priority=VLLM_PRIORITY["evaluation"], **parameters)
        except ReplicaError as error:
            if not error.retryable or attempt == _TRIES:
                raise
            await asyncio.sleep(_FIRST_RETRY_S * 2 ** (attempt - 1))
            attempt += 1


async def _judged(task: Task, request: RewardRequest, scoring: Executor | None, timeout_s: float) -> RewardResult:
    """The verdict, a failed one if the verifier raises or takes too long."""
    work = asyncio.get_running_loop().run_in_executor(scoring, _score, task, request)
    try:
        async with asyncio.timeout(timeout_s):
            return await work
    except TimeoutError:
        return failed(f"no verdict after {timeout_s:g} s (rollout.reward_timeout_s)", "timeout")


def _score(task: Task, request: RewardRequest) -> RewardResult:
    try:
        return task.score(request)
    except (Exception, SystemExit) as error:  # noqa: BLE001  (isolation: one answer must not end the evaluation)
        return failed(f"{type(error).__name__}: {error}")


def _evaluation(found: Sequence[_Examined | None], encoder: PromptEncoder, num_samples: int) -> Evaluation:
    """Adds up; None stands for a problem that was not asked."""
    asked = [one for one in found if one is not None]
    skipped = tuple(index for index, one in enumerate(found) if one is None)
    if not asked:
        raise EvaluationError(
            f"none of {len(found)} held-out problems could be asked: every prompt has more than "
            f"{encoder.max_prompt_tokens} tokens; raise rollout.max_prompt_tokens"
        )
    unjudged = [one for one in asked if one.result.score is None]
    judged = [one for one in asked if one.result.score is not None]
    example = ""
    if unjudged:
        first = unjudged[0]
        example = f"problem {first.problem.index}: {first.result.verdict}: {reason_text(first.result.reasons)}"
    if not judged:
        raise EvaluationError(f"none of {len(asked)} held-out answers was judged; {example}. Repair the verifier")
    num_cut = sum(one.completion.finish_reason == "length" for one in judged)
    kinds = dict(Counter(one.result.verdict for one in unjudged))
    versions = np.concatenate([one.completion.policy_version for one in asked])
    return Evaluation(
        accuracy=sum(one.result.verdict == "pass" for one in judged) / len(judged),
        mean_score=sum(one.result.score for one in judged if one.result.score is not None) / len(judged),
        num_problems=len(judged),
        num_wanted=len(found),
        skipped=skipped,
        failed_verdicts={str(kind): number for kind, number in kinds.items()},
        failed_verdict_example=example,
        num_cut=num_cut,
        versions=(int(versions.min()), int(versions.max())),
        scores=tuple(None if one is None else one.result.score for one in found),
        samples=tuple(
            Sample(
                encoder.text(one.problem),
                one.text,
                one.problem.answer,
                one.result.score,
                one.result.verdict,
                reason_text(one.result.reasons) if one.result.reasons else "",
                one.completion.finish_reason == "length",
            )
            for one in asked[:num_samples]
        ),
        notes=tuple(_notes(skipped, len(found), encoder.max_prompt_tokens, len(asked), kinds, example, num_cut)),
        sources=_by_source(judged),
    )


def _by_source(judged: Sequence[_Examined]) -> dict[str, dict[str, float]]:
    """Skill by the source of the problems; nothing where the task has one source."""
    found: dict[str, list[RewardResult]] = {}
    for one in judged:
        if one.problem.source:
            found.setdefault(one.problem.source, []).append(one.result)
    return {
        label: {
            "num_problems": len(results),
            "accuracy": sum(result.verdict == "pass" for result in results) / len(results),
            "mean_score": sum(result.score or 0.0 for result in results) / len(results),
        }
        for label, results in found.items()
    }


def _notes(
    skipped: Sequence[int],
    num_wanted: int,
    max_prompt_tokens: int,
    num_asked: int,
    kinds: dict[Any, int],
    example: str,
    num_cut: int,
) -> list[str]:
    notes = []
    if skipped:
        notes.append(
            f"{len(skipped)} of {num_wanted} problems were not asked: their prompts have more than "
            f"{max_prompt_tokens} tokens (rollout.max_prompt_tokens); the first is problem {skipped[0]}"
        )
    if number := sum(kinds.values()):
        listed = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
        many = ", too many to trust the figures: repair the verifier" if number > _MANY * num_asked else ""
        notes.append(
            f"{number} of {num_asked} answers have no verdict and count neither as right nor as wrong ({listed}; "
            f"{example}){many}"
        )
    if num_cut:
        notes.append(f"{num_cut} of {num_asked - number} judged answers were cut at the longest length")
    return notes
