"""Whether a model's answer is told: the case that speaks against it, and how probably the answer is right."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace

from rewards.environments import abstains
from serving_bridge.confidence import Calibration, agreement, score_of
from serving_bridge.gateway.answers import CUT, Choice, Delta
from serving_bridge.gateway.callers import Caller
from serving_bridge.gateway.errors import GatewayError
from serving_bridge.gateway.observations import Exchange
from serving_bridge.gateway.requests import MAX_CHOICES, Asked
from serving_bridge.gateway.service import Answer, Answering
from serving_bridge.settings import Case, FallbackSettings

#: errors of the gateway's own side; all others are the user's, or a limit, and stay what they are
_CASES: dict[str | None, Case] = {"unavailable": "unavailable", "lost": "unavailable", "guard_failed": "guard_failed"}


@dataclass(frozen=True)
class Held:
    """A whole answer of which nothing was told yet, to a request that is no stream."""

    answer: Answer
    deltas: Sequence[list[Delta]]

    @property
    def choices(self) -> Sequence[Choice]:
        return self.answer.choices

    @property
    def confidence(self) -> float | None:
        """Of its surest choice; None where none is known."""
        return max((choice.confidence for choice in self.choices if choice.confidence is not None), default=None)

    @property
    def spent(self) -> tuple[int, int]:
        """Tokens of its prompts and of what was sampled."""
        return sum(map(len, self.answer.prompts)), sum(choice.num_tokens for choice in self.choices)

    @property
    def total(self) -> tuple[int, int]:
        """`spent`, with what was spent before it."""
        return summed(self.answer.before, self.spent)

    @property
    def text(self) -> str:
        """Of its first choice."""
        return text_of(self.choices[0])

    async def told(self) -> AsyncIterator[list[Delta]]:
        """What `Answer.deltas` gives; nothing of a choice that was blocked as a whole, after its text had come."""
        blocked = {choice.index for choice in self.choices if choice.finish == CUT and not choice.text}
        for found in self.deltas:
            yield [replace(delta, text="") if delta.index in blocked else delta for delta in found]


@dataclass(frozen=True)
class Complaint:
    """Why an answer is not told."""

    case: Case
    reason: str


async def held(answered: AbstractAsyncContextManager[Answer]) -> Held:
    """The whole answer. Raises `GatewayError` where there is none to its end."""
    async with answered as answer:
        return Held(answer, [deltas async for deltas in answer.deltas])


def exchange_of(response_id: str) -> Exchange:
    """Of a request that stands behind a user's; nobody observes it."""
    return Exchange(response_id, time.monotonic())


def complaint_of(error: GatewayError) -> Complaint | None:
    """The case of an error; None for one that is the user's own, or a limit."""
    case = _CASES.get(error.code) if error.status >= 500 else None
    return None if case is None else Complaint(case, f"{error.status} {error.code}")


def summed(*pairs: tuple[int, int]) -> tuple[int, int]:
    """Tokens of prompts, and of answers."""
    return sum(first for first, _ in pairs), sum(second for _, second in pairs)


def text_of(choice: Choice) -> str:
    return "".join(choice.text)


class Judge:
    """Judges whole answers."""

    def __init__(self, settings: FallbackSettings, calibration: Calibration | None) -> None:
        self._settings, self._calibration = settings, calibration

    @property
    def wants_logprobs(self) -> bool:
        """Whether log-probs of every answer are needed."""
        return self._calibration is not None and self._calibration.score != "agreement"

    @property
    def wants_samples(self) -> bool:
        """Whether further answers to the same question are needed."""
        return self._calibration is not None and self._calibration.score == "agreement"

    def mark(self, choice: Choice, others: Sequence[str] = ()) -> None:
        """Writes the confidence of an ended choice into it.

        Args:
          others: texts of further answers to the same question.
        """
        if self._calibration is None or choice.finish in (None, CUT):
            return
        agreed = agreement(text_of(choice), others)
        score = score_of(self._calibration.score, choice.sums, agreed)
        if score is not None:
            choice.confidence = round(self._calibration.probability(score), 6)
            choice.is_unsure = choice.confidence < self._settings.min_confidence

    def complaint(self, found: Held) -> Complaint | None:
        """What speaks against an answer whose choices are marked; None for nothing."""
        choices = found.choices
        if all(choice.guard_failed for choice in choices):
            return Complaint("guard_failed", "no guard could judge the answer")
        if any(choice.finish == CUT or choice.calls for choice in choices):
            return None
        if all(abstains(text_of(choice), self._settings.unknown_phrases) for choice in choices):
            return Complaint("unknown", "the answer says that the model does not know")
        if all(choice.is_unsure for choice in choices):
            return Complaint("low_confidence", f"confidence {found.confidence}")
        return None

    async def judged(
        self, service: Answering, found: Held, asked: Asked, caller: Caller, response_id: str, left_s: float
    ) -> tuple[Held, Complaint | None]:
        """The answer with its confidence, and what speaks against it. May ask for further answers."""
        others: list[str] = []
        if self.wants_samples and asked.sampling.temperature > 0 and not any(choice.calls for choice in found.choices):
            found, others = await self._sampled(service, found, asked, caller, response_id, left_s)
        for choice in found.choices:
            self.mark(choice, others)
        return found, self.complaint(found)

    async def _sampled(
        self, service: Answering, found: Held, asked: Asked, caller: Caller, response_id: str, left_s: float
    ) -> tuple[Held, list[str]]:
        """Texts of further answers; none where a limit or the replicas don't let them. What they took is counted."""
        seed = None if asked.sampling.seed is None else asked.sampling.seed + 1
        sampling = replace(asked.sampling, n=min(self._settings.samples, MAX_CHOICES), seed=seed, logprobs=None)
        again = replace(asked, sampling=sampling, stream=False, consents=False)
        try:
            more = await held(service.answered(again, caller, exchange_of(f"{response_id}-samples"), left_s))
        except GatewayError:
            return found, []
        answer = replace(found.answer, before=summed(found.answer.before, more.total))
        return Held(answer, found.deltas), [text_of(choice) for choice in more.choices]
