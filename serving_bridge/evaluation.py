"""Skill on held-out problems, measured through a vLLM replica."""

from __future__ import annotations

import asyncio
from concurrent.futures import Executor
from dataclasses import asdict, dataclass
from typing import Any

from rewards.protocol import Problem, RewardRequest, Task
from serving_bridge.tokenization import Tokenizer
from serving_bridge.vllm_client import VllmClient


@dataclass(frozen=True)
class Sample:
    """One answer, for people to read."""

    prompt: str
    answer: str
    expected: str
    score: float | None


@dataclass(frozen=True)
class Evaluation:
    """Skill on held-out problems.

    Attributes:
      accuracy: share of answers that the verifier passed.
      mean_score: mean of the verifier's scores.
      samples: the first few answers.
    """

    accuracy: float
    mean_score: float
    num_problems: int
    samples: tuple[Sample, ...]

    def as_fields(self) -> dict[str, Any]:
        return asdict(self)


class PromptEncoder:
    """Turns a problem into the token ids that the policy is prompted with."""

    def __init__(self, tokenizer: Tokenizer, *, template: str, chat: bool, max_prompt_tokens: int):
        self.tokenizer = tokenizer
        self._template = template
        self._chat = chat
        self.max_prompt_tokens = max_prompt_tokens

    def text(self, problem: Problem) -> str:
        return self._template.replace("{question}", problem.question)

    def encode(self, problem: Problem) -> list[int] | None:
        """Token ids of the prompt, or None if they are more than `max_prompt_tokens`."""
        tokens = self.tokenizer.encode_prompt(self.text(problem), chat=self._chat)
        return tokens if len(tokens) <= self.max_prompt_tokens else None

    def observation(self, text: str, *, after: int) -> list[int]:
        """Token ids of what is said after an answer that ended with token `after`, ready for the next one."""
        return self.tokenizer.encode_observation(text, chat=self._chat, after=after)

    def supervised(self, problem: Problem, target: str) -> tuple[list[int], list[bool]]:
        """(tokens, loss mask) of the prompt followed by the answer to imitate."""
        return self.tokenizer.encode_supervised(self.text(problem), target, chat=self._chat)


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
) -> Evaluation:
    """Answers the first `num_problems` held-out problems, one answer each, and scores them.

    Args:
      temperature: of the answers; 0 is greedy.
      scoring: threads in which answers are scored; the event loop's own if None.

    Raises:
      ReplicaError: the replica failed. An evaluation is all or nothing.
    """
    limit = asyncio.Semaphore(concurrency)

    async def answer(index: int) -> tuple[Sample, bool]:
        problem = task.problem("heldout", index)
        prompt = encoder.encode(problem)
        if prompt is None:
            return Sample(encoder.text(problem), "", problem.answer, 0.0), False
        async with limit:
            (completion,) = await client.generate(
                prompt,
                n=1,
                max_tokens=max_tokens,
                greedy=temperature == 0,
                temperature=temperature or 1.0,
                stop_token_ids=encoder.tokenizer.eos_ids,
                timeout_s=timeout_s,
            )
        text = encoder.tokenizer.decode(completion.tokens.tolist())
        request = RewardRequest(problem, text, completion.finish_reason)
        result = await asyncio.get_running_loop().run_in_executor(scoring, task.score, request)
        return Sample(encoder.text(problem), text, problem.answer, result.score), result.verdict == "pass"

    answered = await asyncio.gather(*(answer(index) for index in range(num_problems)))
    return Evaluation(
        accuracy=sum(passed for _, passed in answered) / num_problems,
        mean_score=sum(sample.score for sample, _ in answered if sample.score is not None) / num_problems,
        num_problems=num_problems,
        samples=tuple(sample for sample, _ in answered[:num_samples]),
    )
