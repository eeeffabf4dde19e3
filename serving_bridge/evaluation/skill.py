"""Skill on held-out problems, measured through a vLLM replica, over those that were asked and judged alone."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Protocol

from rewards.contracts import Message, Problem, Task, ToolDefinition, prompt_text
from serving_bridge.evaluation.figures import Evaluation, Examined, evaluation_of
from serving_bridge.evaluation.observations import fitted
from serving_bridge.text import Tokenizer
from serving_bridge.vllm import VllmClient


class Play(Protocol):
    """Plays problems as episodes with what one replica serves."""

    async def __call__(self, client: VllmClient, asked: Sequence[tuple[Problem, list[int]]]) -> list[Examined]:
        """What became of each (problem, token ids of its prompt), in order; bounded in time.

        Raises:
          ReplicaError: the replica failed for good.
        """


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
    client: VllmClient, task: Task, encoder: PromptEncoder, play: Play, *, num_problems: int, num_samples: int
) -> Evaluation:
    """Skill of what a replica serves on the first `num_problems` held-out problems.

    Args:
      play: has each problem answered and judged, by one answer or by a whole episode.
      num_samples: answers that are kept for people to read.

    Raises:
      ReplicaError: the replica failed for good. An evaluation is all or nothing.
      EvaluationError: no problem could be asked, or no answer was judged.
    """
    problems = [task.problem("heldout", index) for index in range(num_problems)]
    prompts = [encoder.encode(problem) for problem in problems]
    asked = [(p, prompt) for p, prompt in zip(problems, prompts, strict=True) if prompt is not None]
    found = iter(await play(client, asked))
    return evaluation_of([None if prompt is None else next(found) for prompt in prompts], encoder, num_samples)
