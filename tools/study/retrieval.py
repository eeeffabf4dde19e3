"""Does a policy learn to search, to cite and to abstain? A small one does, in Weir's environment `tools` with `search`.

Every dialog is played by `rewards.environments` on a corpus that `rewards.tools` indexes: calls are parsed, documents
ranked, answers judged, citations and abstentions paid as `task.episode` says. Only the policy is small, so that many
seeds cost minutes; the study is of rewards and of the environment, not of language models.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from learner_jax.losses import dr_grpo
from rewards.contracts import AsyncEnvironment, Problem, Reply, Task, is_async
from rewards.environments import create_environment
from rewards.settings import TaskSettings
from rewards.tasks import create_task
from tools.study import retrieval_policy as policy
from tools.study.retrieval_world import write_world

TURNS = 3
#: acts of a turn and turns of a batch are filled up to these, so that the update is compiled once
_MOST_ACTS, _CLIP = 48, 1.0
#: name -> what differs in [task.episode]
PAYS: dict[str, dict[str, float]] = {
    "not paid": {"abstain_reward": 0.0},
    "paid": {"abstain_reward": 1.0},
    "paid, and costs": {"abstain_reward": 1.0, "abstain_anyway": -1.0},
}


@dataclass(frozen=True)
class RetrievalSettings:
    """One run.

    Attributes:
      groups, group_size: of a batch; the dialogs of a group have the same question.
      entropy: weight of the bonus for the entropy of each turn's choice; without it a policy soon tries nothing new.
      evaluate_every: batches between two evaluations on all held-out questions.
    """

    groups: int = 8
    group_size: int = 8
    learning_rate: float = 0.01
    entropy: float = 0.05
    steps: int = 160
    evaluate_every: int = 8


@dataclass(frozen=True)
class RetrievalCell:
    """A run: how abstaining is paid, and the seed of world and policy."""

    pays: str
    seed: int


@dataclass
class Dialog:
    """One dialog as it was played.

    Attributes:
      turns: the acts that were possible and the one that was taken, for each turn.
    """

    problem: Problem
    turns: list[tuple[Sequence[policy.Act], int]] = field(default_factory=list)
    shown: list[str] = field(default_factory=list)
    reward: float = 0.0
    parts: dict[str, float] = field(default_factory=dict)
    verdict: str = ""


def run(cell: RetrievalCell, settings: RetrievalSettings, folder: Path) -> list[dict[str, float]]:
    """Trains one policy, and returns its evaluations: the shares that `measured` names, by dialogs so far.

    Args:
      folder: gets the world: documents and questions.
    """
    world = folder / f"world-{cell.seed}"
    write_world(world, cell.seed)
    task_settings = _task_settings(cell, world)
    task = create_task(task_settings, seed=cell.seed)
    environment = create_environment(task, task_settings)
    assert is_async(environment)
    try:
        return asyncio.run(_train(cell, settings, task, environment))
    finally:
        environment.end()  # type: ignore[attr-defined]  # of the environment `tools`
        task.close()


def _task_settings(cell: RetrievalCell, world: Path) -> TaskSettings:
    return TaskSettings.model_validate(
        {
            "provider": "rows",
            "data": str(world / "train.jsonl"),
            "heldout_data": str(world / "heldout.jsonl"),
            "reward": "exact",
            "environment": "tools",
            "chat": True,
            "turns": TURNS,
            "episode": {
                "tools": ("search",),
                "corpora": {"rivers": str(world / "documents.jsonl")},
                "top_k": 3,
                "answerable_column": "known",
                "documents_column": "sources",
                "citation_weight": 0.3,
                **PAYS[cell.pays],
            },
        }
    )


async def _train(
    cell: RetrievalCell, settings: RetrievalSettings, task: Task, environment: AsyncEnvironment
) -> list[dict[str, float]]:
    rng = np.random.default_rng([cell.seed, 1])
    params = policy.start(cell.seed)
    optimizer = optax.chain(optax.clip_by_global_norm(_CLIP), optax.adam(settings.learning_rate))
    state = optimizer.init(params)
    update = jax.jit(partial(_update, optimizer, settings.entropy))
    heldout = [task.problem("heldout", index) for index in range(task.num_distinct("heldout") or 0)]
    found = []
    for step in range(settings.steps + 1):
        if step % settings.evaluate_every == 0:
            played = await _play(heldout, params, rng, environment)
            found.append({"dialogs": step * settings.groups * settings.group_size, **measured(played)})
        asked = [task.problem("train", step * settings.groups + group) for group in range(settings.groups)]
        dialogs = [problem for problem in asked for _ in range(settings.group_size)]
        played = await _play(dialogs, params, rng, environment)
        params, state = update(params, state, *_batch(played, settings))
        params = {name: np.asarray(value) for name, value in params.items()}
    return found


async def _play(
    problems: Sequence[Problem], params: policy.Params, rng: np.random.Generator, environment: AsyncEnvironment
) -> list[Dialog]:
    """One dialog a problem. Turns are drawn in the order of the problems, so that a seed gives the same dialogs."""
    dialogs = [Dialog(problem) for problem in problems]
    states = dict(enumerate([await environment.reset(problem) for problem in problems]))
    while states:
        replies = {}
        for index in states:
            dialog = dialogs[index]
            possible = policy.acts(dialog.problem.question, tuple(dialog.shown))
            chosen = policy.choose(params, possible, rng)
            dialog.turns.append((possible, chosen))
            replies[index] = Reply(possible[chosen].text, "stop", len(dialog.turns) == TURNS)
        outcomes = await asyncio.gather(*(environment.step(states[i], reply) for i, reply in replies.items()))
        for index, outcome in zip(replies, outcomes, strict=True):
            dialog = dialogs[index]
            assert outcome.reward is not None, outcome.reasons
            dialog.reward += outcome.reward
            if outcome.observation is None:
                await environment.close(states.pop(index))
                dialog.parts, dialog.verdict = dict(outcome.parts), outcome.verdict
                continue
            states[index] = outcome.state
            assert not isinstance(outcome.observation, str)
            dialog.shown += [str(message.content) for message in outcome.observation]
    return dialogs


def measured(dialogs: Sequence[Dialog]) -> dict[str, float]:
    """What the policy does, as shares from 0 to 1, and the mean reward."""
    known = [dialog for dialog in dialogs if dialog.problem.metadata["known"]]
    unknown = [dialog for dialog in dialogs if not dialog.problem.metadata["known"]]
    right = [dialog for dialog in known if dialog.verdict == "pass"]
    return {
        "searched": float(np.mean([bool(dialog.shown) for dialog in dialogs])),
        "right": len(right) / max(len(known), 1),
        "cited": float(np.mean([dialog.parts["citations"] for dialog in right])) if right else 0.0,
        "abstained": _share_of_abstaining(unknown),
        "abstained wrongly": _share_of_abstaining(known),
        "reward": float(np.mean([dialog.reward for dialog in dialogs])),
    }


def _share_of_abstaining(dialogs: Sequence[Dialog]) -> float:
    return sum(dialog.parts["abstained"] for dialog in dialogs) / max(len(dialogs), 1)


def _batch(dialogs: Sequence[Dialog], settings: RetrievalSettings) -> tuple[np.ndarray, ...]:
    """(features [B, K, A, F], which acts there are [B, K, A], the one taken [B, K], advantages [B, K])."""
    shape = (len(dialogs), TURNS, _MOST_ACTS)
    features = np.zeros((*shape, policy.NUM_FEATURES), np.float32)
    exists, taken = np.zeros(shape, bool), np.zeros(shape[:2], np.int32)
    exists[..., 0] = True  # a turn that was not played has one act, and no advantage
    rewards = np.array([dialog.reward for dialog in dialogs]).reshape(settings.groups, settings.group_size)
    outcomes = np.concatenate([dr_grpo(group) for group in rewards])
    advantages = np.zeros(shape[:2], np.float32)
    for row, dialog in enumerate(dialogs):
        for turn, (possible, chosen) in enumerate(dialog.turns):
            features[row, turn, : len(possible)] = [act.features for act in possible]
            exists[row, turn, : len(possible)] = True
            taken[row, turn], advantages[row, turn] = chosen, outcomes[row]
    return features, exists, taken, advantages


def _update(
    optimizer: optax.GradientTransformation, entropy: float, params: Any, state: Any, *batch: Array
) -> tuple[Any, Any]:
    def loss(params: dict[str, Array], features: Array, exists: Array, taken: Array, advantages: Array) -> Array:
        logits = jnp.tanh(features @ params["in"]) @ params["out"]
        log_p = jax.nn.log_softmax(jnp.where(exists, logits, -1e9))
        chosen = jnp.take_along_axis(log_p, taken[..., None], axis=-1)[..., 0]
        bonus = -(jnp.exp(log_p) * jnp.where(exists, log_p, 0.0)).sum(axis=-1)  # 0 for a turn that was not played
        return -(advantages * chosen + entropy * bonus).sum() / len(features)

    updates, state = optimizer.update(jax.grad(loss)(params, *batch), state, params)
    return optax.apply_updates(params, updates), state


def record(cell: RetrievalCell, settings: RetrievalSettings, folder: Path) -> dict[str, Any]:
    """What `records.keep` writes of a run."""
    return {"settings": asdict(settings), "curve": run(cell, settings, folder)}
