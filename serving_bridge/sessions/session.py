"""One conversation of a program that is being trained: it asks, the policy answers, and the tree keeps exact token ids.

Where a request goes on from is the tree's to find (`tree`); what may be asked, and how often, is the session's.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rewards.tools import Call, parse_calls
from serving_bridge.sessions.errors import SessionError
from serving_bridge.sessions.messages import ChatMessage, ToolCall
from serving_bridge.sessions.tree import Answered, Place, Text, Tree
from serving_bridge.text import TokenizerError
from serving_bridge.vllm import Completion

#: (context, most tokens of an answer) -> an answer
Sample = Callable[[Sequence[int], int], Awaitable[Completion]]


@dataclass(frozen=True)
class SessionLimits:
    """Bounds of one session.

    Attributes:
      max_answers: sampled in all its branches.
      max_tokens: of one answer.
      max_context: of prompt and answer together.
      vocab_size: token ids that a client brings are below it.
    """

    max_answers: int
    max_tokens: int
    max_context: int
    vocab_size: int = 2**31


class Session:
    """A conversation of one client. For one event loop.

    Attributes:
      limits: its bounds.
      tree: its answers.
    """

    def __init__(self, text: Text, sample: Sample, limits: SessionLimits) -> None:
        self.tree = Tree(text)
        self.limits = limits
        self._text, self._sample = text, sample
        self._asked = 0

    async def answer(
        self, messages: Sequence[ChatMessage], tools: Sequence[Mapping[str, Any]], max_tokens: int | None = None
    ) -> Answered:
        """Samples an answer to a conversation.

        Args:
          max_tokens: at most; the session's own bound by default.

        Raises:
          SessionError: the session is full, the conversation too long, or the chat template can't show it.
          ReplicaError, NoReplicaError: no answer could be had.
        """
        self._check_room()
        try:
            place = self.tree.place(messages, tools)
        except TokenizerError as error:
            raise SessionError(f"the model's chat template refuses it: {error}", param="messages") from error
        return await self._answered(place, max_tokens, tools=tools)

    async def generate(
        self, token_ids: Sequence[int], max_tokens: int | None = None, stop_token_ids: Sequence[int] = ()
    ) -> Answered:
        """Samples an answer to a prompt of token ids; arguments and errors are those of `answer`.

        Args:
          stop_token_ids: end the answer, besides those that end every answer of the run.
        """
        self._check_room()
        return await self._answered(self.tree.place_ids(token_ids), max_tokens, stop_token_ids=stop_token_ids)

    async def _answered(
        self,
        place: Place,
        max_tokens: int | None,
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        stop_token_ids: Sequence[int] = (),
    ) -> Answered:
        context = [*self.ids(place.parent), *place.given]
        room = self.limits.max_context - len(context)
        if room < 1:
            raise SessionError(
                f"the conversation has {len(context)} tokens, and no answer fits into {self.limits.max_context}",
                code="context_length_exceeded",
                param="messages" if place.said is not None else "token_ids",
            )
        self._asked += 1
        most = min(self.limits.max_tokens, max_tokens or self.limits.max_tokens, room)
        sampled = cut_at(await self._sample(context, most), stop_token_ids)
        return self.tree.add(place, sampled, self._message(sampled, tools))

    def _check_room(self) -> None:
        if self._asked >= self.limits.max_answers:
            raise SessionError(
                f"the session has {self._asked} answers already, at most {self.limits.max_answers}",
                status=429,
                code="session_full",
            )

    @property
    def answers(self) -> list[Answered]:
        """All that were sampled, by number."""
        return self.tree.answers

    @property
    def rebuilt(self) -> int:
        """Requests that could not go on from recorded ids although they showed an assistant's message."""
        return self.tree.rebuilt

    def ids(self, number: int | None) -> list[int]:
        """All token ids up to the end of an answer; none for None."""
        return self.tree.ids(number)

    def path(self, number: int | None) -> list[Answered]:
        """The answers from a beginning to this one."""
        return self.tree.path(number)

    def branches(self) -> list[list[Answered]]:
        """The path to every answer that nothing goes on from, in the order of these answers."""
        return self.tree.branches()

    def _message(self, sampled: Completion, tools: Sequence[Mapping[str, Any]]) -> ChatMessage:
        tokens = sampled.tokens.tolist()
        schemas = {tool["function"]["name"]: _schema(tool) for tool in tools}
        parsed = parse_calls(self._text.decode_marked(tokens), first=100 * len(self.answers), schemas=schemas)
        calls = tuple(
            ToolCall(call.call_id, call.name, _json(call.arguments)) for call in parsed.calls if isinstance(call, Call)
        )
        if len(calls) < len(parsed.calls) or not calls:  # a call that can't be read is shown as it was written
            return ChatMessage("assistant", self._text.decode(tokens))
        return ChatMessage("assistant", parsed.content, calls)


def _schema(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    found = tool["function"].get("parameters")
    return found if isinstance(found, Mapping) else {}


def cut_at(sampled: Completion, stop_token_ids: Sequence[int]) -> Completion:
    """An answer up to the first of these tokens, which ends it.

    Each token's log-prob is the same as if the sampler had stopped there.
    """
    found = np.flatnonzero(np.isin(sampled.tokens, np.asarray(stop_token_ids, np.int64)))
    if not len(found):
        return sampled
    end = int(found[0]) + 1
    arrays = (sampled.tokens[:end], sampled.logprobs[:end], sampled.policy_version[:end])
    return Completion(*arrays, finish_reason="stop")


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False)
