"""How answers to rows are scored: by a verifier, a user's function, a reward server, or a weighted sum of several."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from learner_jax.runtime import DoorError, raised
from rewards.contracts import RewardResult, TaskError, failed, scored
from rewards.sandbox import REWARD, VerifierError, VerifierPool, printable, to_json, user_pool
from rewards.settings import RewardPart, TaskSettings
from rewards.tasks.reward_server import ServerReward
from rewards.verifiers import VERIFIER, Verifier, create_verifier

Row = Mapping[str, Any]


class RowReward(Protocol):
    """Scores answers to rows. Safe to call from several threads."""

    @property
    def version(self) -> str:
        """Names whatever the scores depend on."""

    def score(self, prompt: str, answer: str, row: Row) -> RewardResult:
        """The score of an answer; whatever it is, this returns. May block up to the deadline."""

    def refusal(self, row: Row) -> str:
        """Why answers to this row can't be scored; empty if they can."""

    def close(self) -> None:
        """Ends processes and connections."""


def check_names_reward(settings: TaskSettings) -> None:
    """Raises `TaskError` if the settings name no reward."""
    if not settings.immediate_reward and not settings.rewards:
        raise TaskError(
            f'task.reward is empty; a task of rows needs a function, such as "my_rewards:exact", or one of: '
            f"{', '.join(_known())}"
        )


def create_row_reward(settings: TaskSettings, *, deadline_s: float, num_workers: int) -> RowReward:
    """The reward that `task.reward` or `task.rewards` names.

    Raises:
      TaskError, DoorError: there is none, or it can't be used.
    """
    check_names_reward(settings)
    parts = settings.rewards or (RewardPart(use=settings.immediate_reward),)
    made: list[RowReward] = []
    try:
        made.extend(_create(part.use, settings, deadline_s=deadline_s, num_workers=num_workers) for part in parts)
    except BaseException:
        for reward in made:
            reward.close()
        raise
    return _WeightedSum(parts, made) if settings.rewards else made[0]


def _create(use: str, settings: TaskSettings, *, deadline_s: float, num_workers: int) -> RowReward:
    if use in VERIFIER.names():
        return _OfVerifier(
            use, create_verifier(use, deadline_s=deadline_s, num_workers=num_workers, sandbox=settings.sandbox)
        )
    if use.startswith(("http://", "https://")):
        return ServerReward(use, key_name=settings.reward_key, deadline_s=deadline_s, num_senders=num_workers)
    if ":" not in use and use not in REWARD.names() and "." not in use:
        raise DoorError(_unknown(use))
    pool = user_pool(
        "rewards.sandbox.reward_function",
        use,
        confined=settings.score_confined,
        deadline_s=deadline_s,
        num_workers=num_workers,
    )
    return _OfFunction(use, pool)


def _known() -> list[str]:
    return sorted({*VERIFIER.names(), *REWARD.names()})


def _unknown(use: str) -> str:
    close = difflib.get_close_matches(use, _known(), n=1, cutoff=0.6)
    hint = f"did you mean {close[0]}? " if close else ""
    return f'task.reward {use!r} is unknown; {hint}known: {", ".join(_known())}, or "package.module:name" for your own'


class _OfVerifier:
    """A verifier of Weir's or of a package, which judges in place or in processes of its own."""

    def __init__(self, name: str, verifier: Verifier) -> None:
        self._name = name
        self._verifier = verifier

    @property
    def version(self) -> str:
        return VERIFIER.version(self._name)

    def score(self, prompt: str, answer: str, row: Row) -> RewardResult:
        try:
            return self._verifier.judge(answer, row)
        except Exception as error:  # noqa: BLE001  (isolation: a package's verifier may break its promise)
            return failed(raised(error))

    def refusal(self, row: Row) -> str:
        return self._verifier.refusal(row)

    def close(self) -> None:
        self._verifier.close()


class _OfFunction:
    """A user's function, called in processes that can be killed."""

    def __init__(self, name: str, pool: VerifierPool) -> None:
        self._name = name
        self._pool = pool

    @property
    def version(self) -> str:
        return REWARD.version(self._name)

    def score(self, prompt: str, answer: str, row: Row) -> RewardResult:
        try:
            verified = self._pool.call({"prompt": prompt, "answer": answer, "row": to_json(row)}, key=prompt)
            score = verified.judged_score
        except VerifierError as error:
            return failed(str(error), error.failure)
        except Exception as error:  # noqa: BLE001  (isolation: one answer must not end the rollouts)
            return failed(raised(error))
        return scored(score, {printable(name): value for name, value in verified.parts.items()})

    def refusal(self, row: Row) -> str:
        return ""

    def close(self) -> None:
        self._pool.close()


class _WeightedSum:
    """The sum of several scores, each times its weight. One that fails leaves the whole without a score."""

    def __init__(self, parts: Sequence[RewardPart], rewards: Sequence[RowReward]) -> None:
        self._parts = list(zip(parts, rewards, strict=True))

    @property
    def version(self) -> str:
        return "+".join(f"{part.weight:g}*{reward.version}" for part, reward in self._parts)

    def score(self, prompt: str, answer: str, row: Row) -> RewardResult:
        total: list[float] = []
        parts: dict[str, float] = {}
        reasons: tuple[str, ...] = ()
        for part, reward in self._parts:
            result = reward.score(prompt, answer, row)
            if result.score is None:
                return RewardResult(None, {}, result.verdict, tuple(f"{part.part}: {why}" for why in result.reasons))
            total.append(part.weight * result.score)
            parts[part.part] = result.score
            parts |= {f"{part.part}.{name}": value for name, value in result.parts.items()}
            reasons += tuple(f"{part.part}: {why}" for why in result.reasons)
        return scored(math.fsum(total), parts, reasons=reasons)

    def refusal(self, row: Row) -> str:
        return next((f"{part.part}: {why}" for part, reward in self._parts if (why := reward.refusal(row))), "")

    def close(self) -> None:
        for _, reward in self._parts:
            reward.close()
