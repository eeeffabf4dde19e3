"""The choices of an answer while they come: what each piece of tokens gives to tell the client."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from serving_bridge.confidence import Sums
from serving_bridge.gateway.answer_text import CallText, Decoder, Stops
from serving_bridge.gateway.requests import Asked
from serving_bridge.gateway.upstream import Piece, PositionLogprobs, Span
from serving_bridge.safety import call_text
from serving_bridge.sessions import ToolCall
from serving_bridge.text import Tokenizer

#: finish reason of an answer that a guard cut
CUT = "content_filter"


class TextGuard(Protocol):
    """Watches the text of one choice; see `serving_bridge.safety`."""

    async def push(self, text: str) -> str | None:
        """What can be released; None where the answer must be cut."""

    async def end(self) -> str | None:
        """What was held back; None where the answer must be cut."""

    async def passes(self, text: str) -> bool:
        """Whether a whole text, such as a call's arguments, may be told."""

    @property
    def blocks_all(self) -> bool:
        """Whether the whole answer was blocked, also what was released before."""

    @property
    def has_failed(self) -> bool:
        """Whether the answer was cut because it could not be judged."""


@dataclass(slots=True)
class Delta:
    """What is new of one choice.

    Attributes:
      finish: with the last delta: "stop", "length", "tool_calls" or "content_filter".
      calls: with the last delta.
    """

    index: int
    text: str
    logprobs: Sequence[PositionLogprobs] = ()
    finish: str | None = None
    calls: Sequence[ToolCall] = ()


@dataclass
class Choice:
    """One choice.

    Attributes:
      index: in the whole answer.
      num_tokens: sampled so far.
      spans: policy versions of its tokens; empty where the replica did not come to say them.
      finish: why it ended; None while it goes on.
      tokens, token_logprobs: until it ended, where they are kept; log-probs in nats, fewer where one did not come.
      is_stopped: whether a stop text cut what the client was told.
      sums: of the log-probs of its tokens, where they were asked for.
      confidence: calibrated probability that it is right; None where it is not known.
      is_unsure: whether that is below what the deployment wants.
      guard_failed: whether it was cut because no guard could judge it.
    """

    index: int
    num_tokens: int = 0
    spans: Sequence[Span] = ()
    finish: str | None = None
    text: list[str] = field(default_factory=list)
    calls: Sequence[ToolCall] = ()
    logprobs: list[PositionLogprobs] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    token_logprobs: list[float] = field(default_factory=list)
    is_stopped: bool = False
    sums: Sums = field(default_factory=Sums)
    confidence: float | None = None
    is_unsure: bool = False
    guard_failed: bool = False


class ChoiceReader:
    """Makes deltas of a choice's pieces.

    Args:
      prompt: token ids before the answer.
      guard: None where nobody watches. Log-probs name tokens, so they wait for the end of an answer that is watched.
      keeps: whether the sampled tokens are kept, too.

    Attributes:
      is_guarded: whether a guard watches.
      is_cut_here: it has ended, and the replica does not know.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        asked: Asked,
        prompt: Sequence[int],
        index: int,
        guard: TextGuard | None,
        *,
        keeps: bool = False,
    ) -> None:
        self.choice = Choice(index)
        self._keeps = keeps
        self._decoder = Decoder(tokenizer, prompt, with_marks=bool(asked.tools))
        self._stops = Stops(asked.sampling.stop)
        self._calls = CallText(must_call=bool(asked.call)) if asked.tools else None
        self._is_named_call = asked.call not in ("", "*")
        self._guard, self.is_guarded = guard, guard is not None
        self._streams = asked.stream
        self._tells_logprobs = asked.sampling.logprobs is not None
        self._held_logprobs: list[PositionLogprobs] = []
        self.is_cut_here = False

    async def take(self, piece: Piece) -> Delta | None:
        """What a piece adds; None for nothing. A choice that has ended takes nothing more."""
        choice = self.choice
        if piece.spans:
            choice.spans = piece.spans
        if choice.finish is not None:
            return None
        choice.num_tokens += len(piece.tokens)
        if self._keeps:
            choice.tokens += piece.tokens
            choice.token_logprobs += [position.logprob for position in piece.logprobs]
        for position in piece.logprobs:
            choice.sums.add(position.logprob)
        text = self._stops.push(self._decoder.push(piece.tokens))
        finish = "stop" if self._stops.found else piece.finish
        choice.is_stopped = self._stops.found
        if finish is not None:
            text += self._stops.end()
        if self._calls is not None:
            text = self._calls.push(text)
        calls: Sequence[ToolCall] = ()
        if finish is not None and self._calls is not None:
            ending = self._calls.end()
            text, calls = text + ending.text, ending.calls
            finish = "tool_calls" if calls and finish == "stop" and not self._is_named_call else finish
        logprobs: Sequence[PositionLogprobs] = piece.logprobs if self._tells_logprobs else ()
        if self._guard is not None:
            text, finish = await _guarded(self._guard, text, finish, calls)
            logprobs = self._released(logprobs, finish)
            choice.guard_failed = self._guard.has_failed
            if self._guard.blocks_all and not self._streams:
                choice.text.clear()
        self.is_cut_here = finish is not None and piece.finish is None
        if finish == CUT:
            calls = ()
        return self._told(text, logprobs, finish, calls)

    def _released(self, logprobs: Sequence[PositionLogprobs], finish: str | None) -> Sequence[PositionLogprobs]:
        self._held_logprobs += logprobs
        return self._held_logprobs if finish not in (None, CUT) else ()

    def _told(
        self, text: str, logprobs: Sequence[PositionLogprobs], finish: str | None, calls: Sequence[ToolCall]
    ) -> Delta | None:
        if not text and not logprobs and finish is None:
            return None
        choice = self.choice
        choice.finish, choice.calls = finish, calls
        if text:
            choice.text.append(text)
        choice.logprobs += logprobs
        return Delta(choice.index, text, logprobs, finish, calls)


async def _guarded(
    guard: TextGuard, text: str, finish: str | None, calls: Sequence[ToolCall]
) -> tuple[str, str | None]:
    """What of a text can be told now, and why the answer ends; a call that is blocked cuts it, too."""
    released = await guard.push(text) if text else ""
    if released is not None and finish is not None:
        last = await guard.end()
        released = None if last is None else released + last
    if released is not None and calls:
        said = "\n".join(call_text(call.name, call.arguments) for call in calls)
        released = released if await guard.passes(said) else None
    return ("", CUT) if released is None else (released, finish)
