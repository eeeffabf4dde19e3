"""From a recorded session and its scores to trajectories: the answers to one turn are a group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from learner_jax.contracts import NOT_SAMPLED, Trajectory
from serving_bridge.feedback.scores import Score
from serving_bridge.recordings import Answer, Recorded, ids_of, message_of, path_of, versions_of

#: what the rewards come from, for people
REWARD_VERSION = "feedback/1"
#: From here on a reward is a pass, as for verifiers.
_PASS = 1.0 - 1e-6
_MAX_QUESTION = 1000


def is_sample(answer: Answer) -> bool:
    """Whether an answer is an exact sample of the policy at its temperature, as the client was told it."""
    return answer.is_exact and answer.goes_on and not answer.bent and answer.temperature > 0


def group_of(
    recorded: Recorded,
    turn_id: str,
    scores: Mapping[str, Score],
    *,
    group_id: str,
    tokenizer: str,
    whole: frozenset[str] = frozenset(),
) -> list[Trajectory]:
    """The scored answers to a turn; empty where none is an exact sample.

    Args:
      scores: by answer.
      group_id: `{run}/{index}`.
      tokenizer: fingerprint of the tokenizer behind the ids.
      whole: answers whose score is that of all sampled answers before them, too: an agent's episode.
    """
    answers = [a for a in recorded.answers if a.turn_id == turn_id and a.answer_id in scores and is_sample(a)]
    paths = {answer.answer_id: path_of(recorded, answer.answer_id) for answer in answers}
    usable = [answer for answer in answers if _is_exact(paths[answer.answer_id])]
    index = int(group_id.rpartition("/")[2])
    group = []
    for sample, answer in enumerate(usable):
        score, path = scores[answer.answer_id], paths[answer.answer_id]
        group.append(
            Trajectory(
                trajectory_id=f"{group_id}/{sample}",
                group_id=group_id,
                group_size=len(usable),
                prompt={"index": index, "question": _question(recorded, path), "source": "online"},
                **_arrays(path, score.value, trains_all=answer.answer_id in whole),
                reward_parts=dict(score.parts),
                verdict="pass" if score.value >= _PASS else "fail",
                finish_reason="length" if answer.finish_reason == "length" else "stop",
                sampling={"temperature": answer.temperature, "max_tokens": answer.max_tokens},
                reward_version=REWARD_VERSION,
                source="online",
                tokenizer=tokenizer,
            )
        )
    return group


def _is_exact(path: Sequence[tuple[Any, Answer]]) -> bool:
    """Whether the ids of the whole path are known."""
    return bool(path) and all(turn.tokens is not None and answer.tokens is not None for turn, answer in path)


def _question(recorded: Recorded, path: Sequence[tuple[Any, Answer]]) -> str:
    texts = [message_of(recorded.texts[digest]).content for digest in path[-1][0].texts]
    return texts[-1][:_MAX_QUESTION] if texts else ""


def _arrays(path: Sequence[tuple[Any, Answer]], reward: float, *, trains_all: bool) -> dict[str, Any]:
    """The arrays of one trajectory: a turn is what was said and the answer to it; earlier answers are context."""
    tokens: list[np.ndarray] = []
    mask, logprobs, versions, turns = [], [], [], []
    for number, (turn, answer) in enumerate(path):
        given, own = ids_of(turn.tokens), ids_of(answer.tokens or b"")
        trains = (trains_all and is_sample(answer)) or number == len(path) - 1
        tokens += [np.asarray(given, np.int32), np.asarray(own, np.int32)]
        mask += [np.zeros(len(given), np.bool_), np.full(len(own), trains)]
        known = (
            np.frombuffer(answer.logprobs or b"", "<f4").astype(np.float32)
            if trains
            else np.zeros(len(own), np.float32)
        )
        logprobs += [np.zeros(len(given), np.float32), known]
        sampled = versions_of(answer) if trains else np.full(len(own), NOT_SAMPLED, np.int32)
        versions += [np.full(len(given), NOT_SAMPLED, np.int32), sampled]
        turns.append(np.full(len(given) + len(own), number, np.int32))
    length = sum(map(len, tokens))
    rewards = np.zeros(length, np.float32)
    rewards[-1] = reward
    return {
        "tokens": np.concatenate(tokens),
        "loss_mask": np.concatenate(mask),
        "behavior_logprobs": np.concatenate(logprobs),
        "policy_version": np.concatenate(versions),
        "turn": np.concatenate(turns),
        "rewards": rewards,
    }
