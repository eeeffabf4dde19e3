"""What a model is to an evaluation: something that goes on with a dialog, and says which weights it has."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, replace
from typing import Protocol

from tools.evaluation.problems import OpenSuite, SuiteProblem
from tools.evaluation.suites import Sampling

_KEY_CHARACTERS = 32


@dataclass(frozen=True)
class Identity:
    """Which model answers, as results keep it.

    Attributes:
      kind: "folder", "checkpoint", "weights" or "endpoint".
      name: folder, or the model's name at an endpoint; for people.
      hash: of the weights, tokenizer and dtype; of an endpoint, of its URL, route and the model's name.
    """

    kind: str
    name: str
    hash: str


@dataclass(frozen=True)
class Dialog:
    """What was said so far.

    Attributes:
      messages: (role, text) in order; roles are system, user and assistant.
      tokens: the same as token ids, where the model takes ids; else empty.
    """

    messages: tuple[tuple[str, str], ...]
    tokens: tuple[int, ...] = ()


@dataclass(frozen=True)
class Measurement:
    """What of an answer is another when the same is asked again: its time, and the last digits of its log-probs.

    Attributes:
      seconds: from the request that succeeded to the whole answer.
      logprob, least_logprob: of its tokens: sum and lowest, nats, as they were sampled; None where they are not told.
    """

    seconds: float
    logprob: float | None = None
    least_logprob: float | None = None

    def and_then(self, other: Measurement) -> Measurement:
        """Of two answers of one dialog together."""
        known = self.logprob is not None and other.logprob is not None
        total = self.logprob + other.logprob if self.logprob is not None and other.logprob is not None else None
        lows = [one.least_logprob for one in (self, other) if one.least_logprob is not None]
        return Measurement(self.seconds + other.seconds, total, min(lows) if known and lows else None)


@dataclass(frozen=True)
class Answer:
    """One answer.

    Attributes:
      text: without special tokens.
      finish_reason: "stop", "length" or "content_filter".
      num_tokens: of the answer; None where an endpoint doesn't say.
      tokens: ids, where the model gives them; else empty.
      measured: None where nobody looked. Answers are equal without it.
    """

    text: str
    finish_reason: str
    num_tokens: int | None
    tokens: tuple[int, ...] = ()
    measured: Measurement | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Request:
    """One answer that is wanted: what it depends on, and thus what it is cached by.

    Attributes:
      seed: of this sample of this dialog; None where it is greedy or the suite sends none.
    """

    dialog: Dialog
    sampling: Sampling
    sample: int
    seed: int | None

    def key(self, identity: Identity) -> str:
        """Names the answer: hash of the weights, the prompt, the sampling and the sample's number."""
        return _digest([identity.hash, *self._parts(), self.sample])[:_KEY_CHARACTERS]

    def _parts(self) -> list[object]:
        dialog = self.dialog
        prompt: list[object] = [*dialog.tokens] or [list(message) for message in dialog.messages]
        return [prompt, self.sampling.model_dump(mode="json")]

    def seeded(self) -> Request:
        """The same with the seed that follows from the suite's, the dialog and the sample's number."""
        if self.sampling.seed < 0 or self.sampling.temperature == 0:
            return self
        return replace(self, seed=int(_digest([*self._parts(), self.sample])[:8], 16) & 0x7FFFFFFF)


def first_question(text: str, sampling: Sampling) -> Request:
    """A request of a user's text alone, in a dialog of its own."""
    return Request(Dialog((("user", text),)), sampling, 0, None)


class Model(Protocol):
    """A model that answers. An answer that can't be had is an error, never made up."""

    @property
    def identity(self) -> Identity: ...

    def begin(self, suite: OpenSuite, problem: SuiteProblem) -> Dialog:
        """The prompt of a problem.

        Raises:
          SuiteError: the model can't be asked so.
        """

    def go_on(self, suite: OpenSuite, dialog: Dialog, answer: Answer, observation: str) -> Dialog:
        """The dialog after an answer and what was said to it."""

    async def answer(self, request: Request) -> Answer:
        """Samples one answer; bounded in time."""


def cut_at(text: str, stops: tuple[str, ...]) -> tuple[str, bool]:
    """(text up to the first of the stop texts, whether there was one)."""
    found = [position for stop in stops if (position := text.find(stop)) >= 0]
    return (text[: min(found)], True) if found else (text, False)


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()
