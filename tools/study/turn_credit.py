"""Credit by turn: a small policy learns a task whose reward is earned at turn 1 and paid at turn 5.

A dialog has five turns. In the first, the policy sees one of several questions and chooses an action; one is right, and
from then on the dialog shows whether it was taken. In the other four it chooses, too, and nothing depends on it. The
environment pays at the end: 1 for a right first action, and luck, a coin for each later turn. A network with shared
features plays all turns, so that what one turn learns by mistake disturbs the others.

The estimators are Weir's own: `learner_jax.losses`. The policy is a network of a few hundred weights, so that many
seeds cost seconds; the study is of credit, not of language models.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from learner_jax.losses import dr_grpo, turn_advantages, turn_returns, vtrace

TURNS, QUESTIONS, ACTIONS, HIDDEN = 5, 8, 8, 32
#: mean of the latest rewards of first actions at which the task counts as learnt
LEARNT = 0.9
#: batches over which the share of right first actions is taken
_LATEST = 10
_CLIP = 1.0


@dataclass(frozen=True)
class CreditSettings:
    """One run.

    Attributes:
      groups, group_size: of a batch; the dialogs of a group have the same question.
      luck: what the coin of each later turn pays.
      steps: after which a run that has not learnt gives up.
    """

    groups: int = 8
    group_size: int = 8
    luck: float = 1.0
    learning_rate: float = 0.01
    steps: int = 1200


@dataclass(frozen=True)
class Played:
    """A batch of dialogs, B = groups x group_size.

    Attributes:
      inputs: what the policy saw, [B, K, F].
      actions: [B, K].
      earned: reward by the turn that earned it, [B, K]; all of it is paid at the last turn.
    """

    inputs: np.ndarray
    actions: np.ndarray
    earned: np.ndarray


def _network(key: Array) -> dict[str, Array]:
    first, second, third = jax.random.split(key, 3)
    features = QUESTIONS + TURNS + 1
    return {
        "in": jax.random.normal(first, (features, HIDDEN)) / np.sqrt(3),
        "out": jax.random.normal(second, (HIDDEN, ACTIONS)) * 0.01,
        "value": jax.random.normal(third, (HIDDEN, 1)) * 0.01,
    }


def _hidden(params: dict[str, Array], inputs: Array) -> Array:
    return jnp.tanh(inputs @ params["in"])


def _logits(params: dict[str, Array], inputs: Array) -> Array:
    return _hidden(params, inputs) @ params["out"]


def _values(params: dict[str, Array], inputs: Array) -> Array:
    return (_hidden(params, inputs) @ params["value"])[..., 0]


def _play(params: dict[str, Array], key: Array, groups: int, size: int) -> tuple[Array, Array, Array]:
    """(inputs, actions, reward of the first action and coins of the others)."""
    asked, drawn, tossed = jax.random.split(key, 3)
    questions = jnp.repeat(jax.random.randint(asked, (groups,), 0, QUESTIONS), size)
    rows = groups * size
    right = jnp.zeros(rows)
    inputs, actions = [], []
    for turn in range(TURNS):
        at = jnp.tile(jax.nn.one_hot(turn, TURNS), (rows, 1))
        shown = jnp.concatenate([jax.nn.one_hot(questions, QUESTIONS), at, right[:, None]], axis=1)
        chosen = jax.random.categorical(jax.random.fold_in(drawn, turn), _logits(params, shown))
        if turn == 0:
            right = (chosen == (3 * questions + 1) % ACTIONS).astype(jnp.float32)
        inputs.append(shown)
        actions.append(chosen)
    coins = jax.random.bernoulli(tossed, 0.5, (rows, TURNS)).astype(jnp.float32)
    return jnp.stack(inputs, 1), jnp.stack(actions, 1), coins.at[:, 0].set(right)


def outcome(played: Played, params: Any, settings: CreditSettings) -> np.ndarray:
    """Every turn has the advantage of the whole dialog."""
    totals = played.earned.sum(axis=1)
    groups = totals.reshape(settings.groups, settings.group_size)
    return np.repeat(np.concatenate([dr_grpo(group) for group in groups])[:, None], TURNS, axis=1)


def by_turn(played: Played, params: Any, settings: CreditSettings, *, discount: float = 1.0) -> np.ndarray:
    """Each turn has its own, from rewards that the environment puts where they were earned."""
    found: list[np.ndarray] = []
    for first in range(0, len(played.earned), settings.group_size):
        returns = [turn_returns(row, discount) for row in played.earned[first : first + settings.group_size]]
        found += turn_advantages(returns, dr_grpo)
    return np.stack(found)


def by_values(played: Played, params: Any, settings: CreditSettings) -> np.ndarray:
    """V-trace by turn, from rewards that stand where they were paid: a value function finds who earned them."""
    return np.asarray(_by_values(params, played.inputs, played.earned.sum(axis=1)))


@jax.jit
def _by_values(params: dict[str, Array], inputs: Array, totals: Array) -> Array:
    values = _values(params, inputs)
    rewards = jnp.zeros_like(values).at[:, -1].set(totals)
    discounts = jnp.ones_like(values).at[:, -1].set(0.0)
    decisions = jnp.ones(values.shape, bool)
    estimate = jax.vmap(lambda r, v, d, m: vtrace(r, v, d, m, jnp.zeros_like(r), trace_decay=0.0))
    advantages: Array = estimate(rewards, values, discounts, decisions).advantages
    return advantages


Credit = Callable[[Played, Any, CreditSettings], np.ndarray]
CREDITS: dict[str, Credit] = {
    "outcome alone": outcome,
    "by turn": by_turn,
    "by turn, discount 0.5": partial(by_turn, discount=0.5),
    "by turn, discount 0.1": partial(by_turn, discount=0.1),
    "V-trace by turn": by_values,
}


def run(credit: str, seeds: Sequence[int], settings: CreditSettings) -> list[int | None]:
    """Trains one policy a seed until its first action is right in `LEARNT` of the latest ten batches.

    Returns:
      dialogs that each seed needed; None for one that has not learnt after `settings.steps` batches.
    """
    keys = jnp.stack([jax.random.key(seed) for seed in seeds])
    params = jax.vmap(lambda key: _network(jax.random.fold_in(key, 0)))(keys)
    optimizer = optax.chain(optax.clip_by_global_norm(_CLIP), optax.adam(settings.learning_rate))
    state = jax.vmap(optimizer.init)(params)
    update = _updater(optimizer)
    play = jax.jit(jax.vmap(partial(_play, groups=settings.groups, size=settings.group_size)))
    rows = settings.groups * settings.group_size
    curve: list[np.ndarray] = []
    needed: list[int | None] = [None] * len(seeds)
    for step in range(settings.steps):
        batch = play(params, jax.vmap(jax.random.fold_in, (0, None))(keys, step + 1))
        inputs, actions, earned = (np.asarray(array, np.float64 if i == 2 else None) for i, array in enumerate(batch))
        curve.append(earned[:, :, 0].mean(axis=1))
        latest = np.mean(curve[-_LATEST:], axis=0)
        for index in np.flatnonzero(latest >= LEARNT) if len(curve) >= _LATEST else ():
            needed[index] = needed[index] or (step + 1) * rows
        if all(needed):
            break
        earned = earned * np.where(np.arange(TURNS) == 0, 1.0, settings.luck)
        advantages = np.stack(
            [
                CREDITS[credit](Played(*played), jax.tree.map(lambda leaf, at=at: leaf[at], params), settings)
                for at, played in enumerate(zip(inputs, actions, earned, strict=True))
            ]
        )
        totals = earned.sum(axis=2)
        params, state = update(params, state, *batch[:2], *(jnp.asarray(x, jnp.float32) for x in (advantages, totals)))
    return needed


def _updater(optimizer: optax.GradientTransformation) -> Callable[..., Any]:
    def loss(params: dict[str, Array], inputs: Array, actions: Array, advantages: Array, totals: Array) -> Array:
        log_p = jax.nn.log_softmax(_logits(params, inputs))
        chosen = jnp.take_along_axis(log_p, actions[..., None], axis=-1)[..., 0]
        error = _values(params, inputs) - totals[:, None]  # of a dialog that pays at its end, each turn's return
        return -(advantages * chosen).mean() + 0.5 * (error**2).mean()

    def update(params: Any, state: Any, *batch: Array) -> tuple[Any, Any]:
        updates, state = optimizer.update(jax.grad(loss)(params, *batch), state, params)
        return optax.apply_updates(params, updates), state

    return jax.jit(jax.vmap(update))
