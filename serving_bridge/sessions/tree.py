"""The tree of one conversation: which recorded answer a request goes on from, and the token ids that stand before it.

A request brings the whole conversation. The longest part of it that was sampled here is found by comparing messages, or
ids where the client brings ids. The model goes on from the ids that it sampled then: the same text may have other
ids, for which the sampler's log-probs would be wrong. A request that goes back to an earlier point, or asks the same
again, begins a branch. One that shows an answer as the model never gave it begins anew, as text, and is counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from serving_bridge.sessions.messages import ChatMessage, harmless_value, tools_key
from serving_bridge.vllm import Completion


class Text(Protocol):
    """What a tree needs of the model's tokenizer; see `serving_bridge.text.Tokenizer`."""

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
class Place:
    """Where a request stands in the tree.

    Attributes:
      parent: number of the answer that it goes on from; None at a beginning.
      said: messages since then; None where the client brought token ids.
      tools: `tools_key` of the request's tools.
      given: token ids since then.
      rebuilt: whether it shows an answer that could not be matched, and so begins anew.
    """

    parent: int | None
    said: tuple[ChatMessage, ...] | None
    tools: str
    given: tuple[int, ...]
    rebuilt: bool = False


@dataclass(frozen=True)
class Answered:
    """One sampled answer.

    Attributes:
      number: position in the session, in the order in which answers came.
      parent: number of the answer that it goes on from; None at a beginning.
      said: messages since then; None where the client brought token ids.
      given: their token ids.
      message: the answer as the client was told it.
      context: number of token ids before the answer.
      goes_on: whether its ids are what the client was told, so that a request may go on from them.
    """

    number: int
    parent: int | None
    said: tuple[ChatMessage, ...] | None
    tools: str
    given: tuple[int, ...]
    answer: Completion
    message: ChatMessage
    context: int
    goes_on: bool = True


class Tree:
    """The answers of one conversation.

    Attributes:
      answers: by number.
      rebuilt: requests that could not go on from recorded ids although they showed an assistant's message.
    """

    def __init__(self, text: Text) -> None:
        self.answers: list[Answered] = []
        self.rebuilt = 0
        self._text = text

    def place(self, messages: Sequence[ChatMessage], tools: Sequence[Mapping[str, Any]]) -> Place:
        """Where a conversation of messages stands.

        Raises:
          TokenizerError: the chat template can't show it.
        """
        parent, said = self._found(messages, tools_key(tools))
        if parent is None:
            return self.place_anew(messages, tools)
        last = self.answers[parent].answer.tokens[-1:].tolist()
        shown = self._shown(said)
        given = self._text.encode_continuation(shown, after=last[0] if last else -1)
        return Place(parent, tuple(said), tools_key(tools), tuple(given))

    def place_anew(self, messages: Sequence[ChatMessage], tools: Sequence[Mapping[str, Any]]) -> Place:
        """The place of a conversation that begins; what it shows of answers is encoded as text.

        Raises:
          TokenizerError: the chat template can't show it.
        """
        rebuilt = any(message.role == "assistant" for message in messages)
        self.rebuilt += rebuilt
        shown = self._shown(messages)
        given = self._text.encode_chat(shown, tools=harmless_value(list(tools), self._text.harmless))
        return Place(None, tuple(messages), tools_key(tools), tuple(given), rebuilt)

    def _shown(self, messages: Sequence[ChatMessage]) -> list[dict[str, Any]]:
        """Messages as the chat template reads them, without what could become a special token."""
        return [harmless_value(message.as_chat(), self._text.harmless) for message in messages]

    def place_ids(self, token_ids: Sequence[int]) -> Place:
        """Where a prompt of token ids stands: after the deepest answer whose ids it begins with."""
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
        rebuilt = furthest > end  # it shows the beginning of an answer, and then something else
        self.rebuilt += rebuilt
        return Place(number, None, tools_key(()), tuple(token_ids[end:]), rebuilt)

    def add(self, place: Place, answer: Completion, message: ChatMessage, *, goes_on: bool = True) -> Answered:
        """Takes up an answer that was sampled at a place."""
        answered = Answered(
            number=len(self.answers),
            parent=place.parent,
            said=place.said,
            tools=place.tools,
            given=place.given,
            answer=answer,
            message=message,
            context=self.num_tokens(place.parent) + len(place.given),
            goes_on=goes_on,
        )
        self.answers.append(answered)
        return answered

    def num_tokens(self, number: int | None) -> int:
        """Token ids up to the end of an answer; 0 for None."""
        return 0 if number is None else self.answers[number].context + len(self.answers[number].answer)

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
            if answered.said is None or start is None or not answered.goes_on:
                continue
            if answered.parent is None and answered.tools != tools:
                continue
            own = [*(message.key for message in answered.said), answered.message.key]
            if keys[start : start + len(own)] != own:
                continue
            ends[answered.number] = start + len(own)
            best = max(best, (ends[answered.number], answered.number), key=lambda place: place[0])
        end, number = best
        if any(message.role == "assistant" for message in messages[end:]):
            return None, messages
        return number, messages[end:]


def _common(prompt: np.ndarray, answer: np.ndarray) -> int:
    """Leading tokens that both have."""
    length = min(len(prompt), len(answer))
    differs = np.flatnonzero(prompt[:length] != answer[:length])
    return int(differs[0]) if len(differs) else length
