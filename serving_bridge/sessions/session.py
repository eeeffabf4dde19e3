"""One conversation as exact token ids: a tree whose nodes are sampled answers, each stored once.

A request brings the whole conversation as messages. The longest part of it that was sampled here is found by comparing
messages, and the model goes on from the ids that it sampled then: nothing that was sampled is ever encoded again,
since the same text may have other ids, for which the sampler's log-probs would be wrong. A request that goes back to
an earlier point, or asks the same again, begins a branch. One that shows an answer as the model never gave it can't go
on from ids: it begins anew, as text, and is counted.

A client that renders and tokenizes itself brings token ids instead; its place in the tree is found by comparing ids.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from rewards.tools import Call, parse_calls
from serving_bridge.sessions.errors import SessionError
from serving_bridge.sessions.messages import ChatMessage, ToolCall, tools_key
from serving_bridge.text import TokenizerError
from serving_bridge.vllm import Completion

#: (context, most tokens of an answer) -> an answer
Sample = Callable[[Sequence[int], int], Awaitable[Completion]]


class Text(Protocol):
    """What a session needs of the model's tokenizer; see `serving_bridge.text.Tokenizer`."""

    def encode_chat(self, messages: Sequence[Mapping[str, Any]], *, tools: Sequence[Mapping[str, Any]]) -> list[int]:
        """A dialog from its beginning, ready for an answer."""

    def encode_continuation(self, messages: Sequence[Mapping[str, Any]], *, after: int) -> list[int]:
        """What stands between an answer and the next."""

    def harmless(self, text: str) -> str:
        """A stranger's text, which gives no special token."""

    def decode(self, ids: Sequence[int]) -> str:
        """Text without special tokens."""

    def decode_marked(self, ids: Sequence[int]) -> str:
        """Text with special tokens, but for the one that ended it."""


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


@dataclass(frozen=True)
class Answered:
    """One sampled answer.

    Attributes:
      number: position in the session, in the order in which requests came.
      parent: number of the answer that it goes on from; None at a beginning.
      said: messages since then; None where the client brought token ids.
      given: their token ids.
      message: the answer as the client was told it.
      context: number of token ids before the answer.
    """

    number: int
    parent: int | None
    said: tuple[ChatMessage, ...] | None
    tools: str
    given: tuple[int, ...]
    answer: Completion
    message: ChatMessage
    context: int


class Session:
    """A conversation of one client. For one event loop.

    Attributes:
      limits: its bounds.
      answers: all that were sampled, by number.
      rebuilt: requests that could not go on from recorded ids although they showed an assistant's message.
    """

    def __init__(self, text: Text, sample: Sample, limits: SessionLimits) -> None:
        self.answers: list[Answered] = []
        self.rebuilt = 0
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
        parent, said = self._found(messages, tools_key(tools))
        given = self._given(parent, said, tools)
        return await self._answered(parent, given, max_tokens, said=tuple(said), tools=tools)

    async def generate(
        self, token_ids: Sequence[int], max_tokens: int | None = None, stop_token_ids: Sequence[int] = ()
    ) -> Answered:
        """Samples an answer to a prompt of token ids; arguments and errors are those of `answer`.

        Args:
          stop_token_ids: end the answer, besides those that end every answer of the run.
        """
        self._check_room()
        parent, start = self._found_ids(token_ids)
        return await self._answered(parent, token_ids[start:], max_tokens, stop_token_ids=stop_token_ids)

    async def _answered(
        self,
        parent: int | None,
        given: Sequence[int],
        max_tokens: int | None,
        *,
        said: tuple[ChatMessage, ...] | None = None,
        tools: Sequence[Mapping[str, Any]] = (),
        stop_token_ids: Sequence[int] = (),
    ) -> Answered:
        context = [*self.ids(parent), *given]
        room = self.limits.max_context - len(context)
        if room < 1:
            raise SessionError(
                f"the conversation has {len(context)} tokens, and no answer fits into {self.limits.max_context}",
                code="context_length_exceeded",
                param="messages" if said is not None else "token_ids",
            )
        self._asked += 1
        most = min(self.limits.max_tokens, max_tokens or self.limits.max_tokens, room)
        sampled = cut_at(await self._sample(context, most), stop_token_ids)
        answered = Answered(
            number=len(self.answers),
            parent=parent,
            said=said,
            tools=tools_key(tools),
            given=tuple(given),
            answer=sampled,
            message=self._message(sampled, tools),
            context=len(context),
        )
        self.answers.append(answered)
        return answered

    def _check_room(self) -> None:
        if self._asked >= self.limits.max_answers:
            raise SessionError(
                f"the session has {self._asked} answers already, at most {self.limits.max_answers}",
                status=429,
                code="session_full",
            )

    def ids(self, number: int | None) -> list[int]:
        """All token ids up to the end of an answer; none for None."""
        found: list[int] = []
        for answered in self.path(number):
            found += [*answered.given, *answered.answer.tokens.tolist()]
        return found

    def path(self, number: int | None) -> list[Answered]:
        """The answers from a beginning to this one."""
        found: list[Answered] = []
        while number is not None:
            found.append(self.answers[number])
            number = self.answers[number].parent
        return found[::-1]

    def branches(self) -> list[list[Answered]]:
        """The path to every answer that nothing goes on from, in the order of these answers."""
        inner = {answered.parent for answered in self.answers}
        return [self.path(answered.number) for answered in self.answers if answered.number not in inner]

    def _found(self, messages: Sequence[ChatMessage], tools: str) -> tuple[int | None, Sequence[ChatMessage]]:
        """The deepest answer that the messages go on from, and what they say since."""
        keys = [message.key for message in messages]
        best: tuple[int, int | None] = (0, None)
        ends: dict[int | None, int] = {None: 0}  # answer on the messages' path -> messages up to its end
        for answered in self.answers:
            start = ends.get(answered.parent)
            if answered.said is None or start is None or (answered.parent is None and answered.tools != tools):
                continue
            own = [*(message.key for message in answered.said), answered.message.key]
            if keys[start : start + len(own)] != own:
                continue
            ends[answered.number] = start + len(own)
            best = max(best, (ends[answered.number], answered.number), key=lambda place: place[0])
        end, number = best
        if any(message.role == "assistant" for message in messages[end:]):
            self.rebuilt += 1
            return None, messages
        return number, messages[end:]

    def _found_ids(self, token_ids: Sequence[int]) -> tuple[int | None, int]:
        """The deepest answer whose ids the prompt begins with, and their number."""
        prompt = np.asarray(token_ids)
        ends: dict[int | None, int] = {None: 0}
        best: tuple[int, int | None] = (0, None)
        furthest = 0
        for answered in self.answers:
            start = ends.get(answered.parent)
            if start is None or not np.array_equal(prompt[start : start + len(answered.given)], answered.given):
                continue
            start += len(answered.given)
            same = _common(prompt[start:], answered.answer.tokens)
            furthest = max(furthest, start + same if same else 0)
            if same == len(answered.answer):
                ends[answered.number] = start + same
                best = max(best, (start + same, answered.number), key=lambda place: place[0])
        end, number = best
        self.rebuilt += furthest > end  # it shows the beginning of an answer, and then something else
        return number, end

    def _given(
        self, parent: int | None, said: Sequence[ChatMessage], tools: Sequence[Mapping[str, Any]]
    ) -> Sequence[int]:
        shown = [self._harmless(message).as_chat() for message in said]
        try:
            if parent is None:
                return self._text.encode_chat(shown, tools=tools)
            return self._text.encode_continuation(shown, after=int(self.answers[parent].answer.tokens[-1]))
        except TokenizerError as error:
            raise SessionError(f"the model's chat template refuses it: {error}", param="messages") from error

    def _harmless(self, message: ChatMessage) -> ChatMessage:
        return replace(message, content=self._text.harmless(message.content))

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


def _common(prompt: np.ndarray, answer: np.ndarray) -> int:
    """Leading tokens that both have."""
    length = min(len(prompt), len(answer))
    differs = np.flatnonzero(prompt[:length] != answer[:length])
    return int(differs[0]) if len(differs) else length


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False)
