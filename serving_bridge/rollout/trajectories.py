"""From played episodes to the trajectories that the queue takes; token ids are exactly the sampler's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from learner_jax.contracts import NOT_SAMPLED, Trajectory
from rewards.contracts import Problem
from serving_bridge.evaluation import reason_text
from serving_bridge.rollout.episodes import Episode, PlayedTurn
from serving_bridge.settings import RolloutSettings


@dataclass(frozen=True)
class Origin:
    """What the trajectories of a run have in common.

    Attributes:
      run: with the prompt's index and the sample's, the trajectory's id: deterministic, hence the idempotency key.
      tokenizer: fingerprint of the tokenizer behind the ids.
    """

    run: str
    group_size: int
    settings: RolloutSettings
    reward_version: str
    tokenizer: str


def group_id_of(run: str, index: int) -> str:
    """The id of the group of a prompt."""
    return f"{run}/{index}"


def make_trajectories(origin: Origin, index: int, episodes: Sequence[Episode]) -> list[Trajectory]:
    """The group of prompt `index`; ids never change between tries, token ids are exactly the sampler's."""
    group_id = group_id_of(origin.run, index)
    return [
        Trajectory(
            trajectory_id=f"{group_id}/{sample}",
            group_id=group_id,
            group_size=origin.group_size,
            prompt=_prompt(index, episode.problem),
            **_arrays(episode.turns),
            branch_tokens=_branch_tokens(episode.turns),
            reward_parts=dict(episode.turns[-1].outcome.parts),
            verdict=episode.turns[-1].outcome.verdict,
            finish_reason=episode.turns[-1].answer.finish_reason,  # type: ignore[arg-type]
            sampling={"temperature": origin.settings.temperature, "max_tokens": origin.settings.max_tokens},
            reward_version=origin.reward_version,
            tokenizer=origin.tokenizer,
            verdict_reason="" if episode.is_judged else reason_text(episode.turns[-1].outcome.reasons),
        )
        for sample, episode in enumerate(episodes)
    ]


def _prompt(index: int, problem: Problem) -> dict[str, Any]:
    named = {"source": problem.source} if problem.source else {}
    return {"index": index, "question": problem.question, **named}


def _branch_tokens(turns: Sequence[PlayedTurn]) -> tuple[int, ...]:
    """Tokens of each branch; () where there is one."""
    lengths = [0]
    for turn in turns:
        if turn.begins:
            lengths.append(0)
        lengths[-1] += len(turn.given) + len(turn.answer)
    return tuple(lengths) if len(lengths) > 1 else ()


def _arrays(turns: Sequence[PlayedTurn]) -> dict[str, Any]:
    """The arrays of a trajectory, all of one length; a turn is what was given and the answer to it."""
    lengths = [(len(turn.given), len(turn.answer)) for turn in turns]
    is_judged = turns[-1].outcome.reward is not None  # else what earlier turns earned is not the episode's reward
    ends = np.cumsum([given + answer for given, answer in lengths])
    length = int(ends[-1])
    found = {
        "tokens": np.empty(length, np.int32),
        "loss_mask": np.zeros(length, np.bool_),
        "behavior_logprobs": np.zeros(length, np.float32),
        "policy_version": np.full(length, NOT_SAMPLED, np.int32),
        "turn": np.repeat(np.arange(len(turns), dtype=np.int32), [given + answer for given, answer in lengths]),
        "rewards": np.zeros(length, np.float32),
    }
    for number, (turn, (_, sampled), end) in enumerate(zip(turns, lengths, ends, strict=True)):
        answer = slice(end - sampled, end)
        found["tokens"][end - sampled - len(turn.given) : end - sampled] = turn.given
        found["tokens"][answer] = turn.answer.tokens
        found["loss_mask"][answer] = True
        found["behavior_logprobs"][answer] = turn.answer.logprobs
        found["policy_version"][answer] = turn.answer.policy_version
        if is_judged:
            assert turn.outcome.reward is not None
            earned_at = number if turn.outcome.earned_at is None else turn.outcome.earned_at
            found["rewards"][ends[earned_at] - 1] += turn.outcome.reward
    return found
