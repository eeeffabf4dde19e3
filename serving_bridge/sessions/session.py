"""One conversation as exact token ids: a tree whose nodes are sampled answers, each stored once.

A request brings the whole conversation as messages. The longest part of it that was sampled here is found by comparing
messages, and the model goes on from the ids that it sampled then: nothing that was sampled is ever encoded again,
since the same text may have other ids, for which the sampler's log-probs would be wrong. A request that goes back to
an earlier point, or asks the same again, begins a branch. One that shows an answer as the model never gave it can't go
on from ids: it begins anew, as text, and is counted.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

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
    """

    max_answers: int
    max_tokens: int
    max_context: int


@dataclass(frozen=True)
class Answered:
    """One sampled answer.

    Attributes:
      number: position in the session, in the order in which requests came.
      parent: number of the answer that it goes on from; None at a beginning.
      said: messages since then.
      given: their token ids.
      message: the answer as the client was told it.
      context: number of token ids before the answer.
    """

    number: int
    parent: int | None
    said: tuple[ChatMessage, ...]
    tools: str
    given: tuple[int, ...]
    answer: Completion
    message: ChatMessage
    context: int


class Session:
    """A conversation of one client. For one event loop.

    Attributes:
      answers: all that were sampled, by number.
      rebuilt: requests that could not go on from recorded ids although they showed an assistant's message.
    """

    def __init__(self, text: Text, sample: Sample, limits: SessionLimits) -> None:
        self.answers: list[Answered] = []
        self.rebuilt = 0
        self._text, self._sample, self._limits = text, sample, limits
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
        if self._asked >= self._limits.max_answers:
            raise SessionError(
                f"the session has {self._asked} answers already, at most {self._limits.max_answers}",
                status=429,
                code="session_full",
            )
        parent, said = self._found(messages, tools_key(tools))
        given = self._given(parent, said, tools)
        context = [*self.ids(parent), *given]
        room = self._limits.max_context - len(context)
        if room < 1:
            raise SessionError(
                f"the conversation has {len(context)} tokens, and no answer fits into {self._limits.max_context}",
                code="context_length_exceeded",
                param="messages",
            )
        self._asked += 1
        most = min(self._limits.max_tokens, max_tokens or self._limits.max_tokens, room)
        sampled = await self._sample(context, most)
        answered = Answered(
            number=len(self.answers),
            parent=parent,
            said=tuple(said),
            tools=tools_key(tools),
            given=tuple(given),
            answer=sampled,
            message=self._message(sampled),
            context=len(context),
        )
        self.answers.append(answered)
        return answered

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
            if start is None or (answered.parent is None and answered.tools != tools):
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

    def _message(self, sampled: Completion) -> ChatMessage:
        tokens = sampled.tokens.tolist()
        parsed = parse_calls(self._text.decode_marked(tokens), first=100 * len(self.answers))
        calls = tuple(
            ToolCall(call.call_id, call.name, _json(call.arguments)) for call in parsed.calls if isinstance(call, Call)
        )
        if len(calls) < len(parsed.calls) or not calls:  # a call that can't be read is shown as it was written
            return ChatMessage("assistant", self._text.decode(tokens))
        return ChatMessage("assistant", parsed.content, calls)


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False)
