"""Answers that nobody could judge: what an episode keeps of the failure, and when they are too many to go on."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping, Sequence
from typing import Any

from learner_jax.contracts import MAX_REASON, MAX_REWARD, ContractError, check_parts
from learner_jax.runtime import WeirError
from rewards.contracts import EpisodeState, Failure, Outcome, Verdict, is_failure

#: Latest answers over which failed verdicts are counted. Fewer would stop a sound run by bad luck now and then.
WINDOW = 512


class FailedVerdictsError(WeirError, RuntimeError):
    """Too many answers have no verdict: how many, an example, and the setting."""

    can_heal = False


def unjudged(state: EpisodeState, failure: Failure, reason: str) -> Outcome:
    """The outcome of an answer that nobody judged; it ends the episode."""
    return Outcome(None, {}, failure, None, state, (reason,))


def sound(outcome: Outcome) -> Outcome:
    """The outcome, or a failed verdict in place of one whose reward or parts no record could hold."""
    if outcome.reward is not None and not -MAX_REWARD <= outcome.reward <= MAX_REWARD:
        reason = f"the environment gave reward {outcome.reward}, expected one from {-MAX_REWARD:g} to {MAX_REWARD:g}"
        return unjudged(outcome.state, "error", reason)
    if outcome.earned_at is not None and not 0 <= outcome.earned_at < max(1, outcome.state.turn):
        reason = f"the environment paid for turn {outcome.earned_at}, expected one from 0 to {outcome.state.turn - 1}"
        return unjudged(outcome.state, "error", reason)
    try:
        check_parts("the environment's parts of a reward", outcome.parts)
    except ContractError as error:
        return unjudged(outcome.state, "error", str(error))
    return outcome


def reason_text(reasons: Sequence[str]) -> str:
    """Why a verdict failed, as it is kept and shown: one line without control characters, of bounded length."""
    text = "; ".join(reasons)[:MAX_REASON]
    return "".join(character if character.isprintable() else " " for character in text)


class VerdictWatch:
    """Counts verdicts, and raises where too many failed; rewards that come later ("pending") are no failures.

    Args:
      max_share: of the latest `window` answers that may be without verdict; 1 allows all.
      count: "verdicts" and "failed_verdicts" are counted here.
    """

    def __init__(self, max_share: float, *, count: Counter[str], window: int = WINDOW) -> None:
        self._max_share = max_share
        self._count = count
        self._latest: deque[Verdict] = deque(maxlen=window)
        self._window = window
        self._num_failed = 0
        self._kinds: Counter[str] = Counter()
        self._example = ""

    def add(self, problem: int, outcomes: Sequence[Outcome]) -> None:
        """Takes the verdicts on answers to a problem.

        Raises:
          FailedVerdictsError: among the latest answers, more have none than the share of a whole window.
        """
        self._count["verdicts"] += len(outcomes)
        for outcome in outcomes:
            if len(self._latest) == self._window:
                self._num_failed -= _has_failed(self._latest[0])
            self._latest.append(outcome.verdict)
            if _has_failed(outcome.verdict):
                self._num_failed += 1
                self._count["failed_verdicts"] += 1
                self._kinds[outcome.verdict] += 1
                self._example = f"problem {problem}: {outcome.verdict}: {reason_text(outcome.reasons)}"
        if self._num_failed > self._max_share * self._window:
            raise FailedVerdictsError(self._told())

    def take(self) -> Mapping[str, Any]:
        """Failed verdicts by kind since the last call, and one of them as an example; nothing if there were none."""
        kinds, self._kinds = self._kinds, Counter()
        return {"failed_verdict_kinds": dict(kinds), "failed_verdict_example": self._example} if kinds else {}

    def _told(self) -> str:
        kinds = Counter(verdict for verdict in self._latest if _has_failed(verdict))
        listed = ", ".join(f"{number} {kind}" for kind, number in kinds.most_common())
        return (
            f"{self._num_failed} of the latest {len(self._latest)} answers have no verdict "
            f"({self._num_failed / len(self._latest):.1%}: {listed}), expected at most "
            f"{self._max_share * self._window:g} of {self._window}; the last one, {self._example}. "
            f"Repair the verifier, or raise rollout.max_failed_verdicts (now {self._max_share:g})"
        )


def _has_failed(verdict: Verdict) -> bool:
    return is_failure(verdict) and verdict != "pending"
