"""Episodes in float64, and GAE and V-trace of them in NumPy from the papers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from learner_jax.losses import recurrence, returns

METHODS = ["sequential", "associative"]


MODES: dict[str, Callable] = {"eager": lambda function: function, "jit": jax.jit}


# fp32 against float64: a few tens of roundings of 6e-8 each, on values of about 10.
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@dataclasses.dataclass(frozen=True)
class Episode:
    """One sequence in float64 whose numbers fp32 holds exactly, so that only the arithmetic differs."""

    rewards: np.ndarray
    values: np.ndarray
    discounts: np.ndarray
    decisions: np.ndarray
    log_rhos: np.ndarray

    @property
    def arrays(self) -> tuple[jax.Array, ...]:
        floats = (jnp.asarray(x, jnp.float32) for x in (self.rewards, self.values, self.discounts))
        return (*floats, jnp.asarray(self.decisions))

    @property
    def log_rhos_array(self) -> jax.Array:
        return jnp.asarray(self.log_rhos, jnp.float32)


def random_episode(seed: int, *, length: int = 24, share: float = 0.5) -> Episode:
    """A finished episode; about `share` of its tokens are decisions, 1.0 for all of them."""
    rng = np.random.default_rng(seed)

    def fp32(x: np.ndarray) -> np.ndarray:
        return x.astype(np.float32).astype(np.float64)

    discounts = fp32(rng.uniform(0.6, 1.0, length))
    discounts[-1] = 0.0
    return Episode(
        rewards=fp32(rng.normal(size=length)),
        values=fp32(rng.normal(size=length)),
        discounts=discounts,
        decisions=rng.random(length) < share,
        log_rhos=fp32(0.8 * rng.normal(size=length)),
    )


def recurrence_oracle(inputs: np.ndarray, decays: np.ndarray) -> np.ndarray:
    out, following = np.zeros(len(inputs)), 0.0
    for t in reversed(range(len(inputs))):
        following = inputs[t] + decays[t] * following
        out[t] = following
    return out


def decision_process(episode: Episode) -> tuple[np.ndarray, Episode]:
    """(positions of the decisions, the episode with one step per decision).

    A step's reward is the discounted sum of what is earned until the next decision, its discount the product of the
    discounts on the way (a semi-Markov process: Sutton, Precup and Singh, 1999, section 3).
    """
    positions = np.flatnonzero(episode.decisions)
    rewards, discounts = [], []
    for start, stop in zip(positions, [*positions[1:], len(episode.rewards)], strict=True):
        reward, passed = 0.0, 1.0
        for t in range(start, stop):
            reward += passed * episode.rewards[t]
            passed *= episode.discounts[t]
        rewards.append(reward)
        discounts.append(passed)
    steps = Episode(
        rewards=np.array(rewards),
        values=episode.values[positions],
        discounts=np.array(discounts),
        decisions=np.ones(len(positions), bool),
        log_rhos=episode.log_rhos[positions],
    )
    return positions, steps


def gae_oracle(episode: Episode, trace_decay: float) -> tuple[np.ndarray, np.ndarray]:
    """Equation 16 as the sum that it is, over decisions: (advantages, advantages + values), 0 elsewhere."""
    positions, steps = decision_process(episode)
    values = np.append(steps.values, 0.0)
    advantages, targets = np.zeros(len(episode.rewards)), np.zeros(len(episode.rewards))
    for t, position in enumerate(positions):
        weight = 1.0
        for k in range(t, len(positions)):
            delta = steps.rewards[k] + steps.discounts[k] * values[k + 1] - values[k]
            advantages[position] += weight * delta
            weight *= steps.discounts[k] * trace_decay
        targets[position] = advantages[position] + values[t]
    return advantages, targets


def vtrace_oracle(
    episode: Episode, *, trace_decay: float = 1.0, clip_rho: float = 1.0, clip_c: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """IMPALA, equation 1 as a sum of products, and the advantage of section 4.2: (advantages, v), 0 elsewhere."""
    positions, steps = decision_process(episode)
    count = len(positions)
    values = np.append(steps.values, 0.0)
    rho = [min(clip_rho, np.exp(x)) for x in steps.log_rhos]
    c = [trace_decay * min(clip_c, np.exp(x)) for x in steps.log_rhos]
    v = np.zeros(count + 1)
    for t in range(count):
        v[t] = values[t]
        for k in range(t, count):
            delta = rho[k] * (steps.rewards[k] + steps.discounts[k] * values[k + 1] - values[k])
            v[t] += np.prod(steps.discounts[t:k]) * np.prod(c[t:k]) * delta
    advantages, targets = np.zeros(len(episode.rewards)), np.zeros(len(episode.rewards))
    for t, position in enumerate(positions):
        following = trace_decay * v[t + 1] + (1 - trace_decay) * values[t + 1]
        advantages[position] = rho[t] * (steps.rewards[t] + steps.discounts[t] * following - values[t])
        targets[position] = v[t]
    return advantages, targets


jitted_gae = jax.jit(returns.generalized_advantages, static_argnames="method")


jitted_vtrace = jax.jit(returns.vtrace, static_argnames="method")


def gae(episode: Episode, trace_decay: float, method: recurrence.Method = "auto") -> returns.Targets:
    return jitted_gae(*episode.arrays, trace_decay=trace_decay, method=method)


def vtrace(
    episode: Episode,
    *,
    trace_decay: float = 1.0,
    clip_rho: float = 1.0,
    clip_c: float = 1.0,
    method: recurrence.Method = "auto",
) -> returns.Targets:
    """All numbers are traced, so that one compilation serves all of them."""
    numbers = {"trace_decay": trace_decay, "clip_rho": clip_rho, "clip_c": clip_c}
    return jitted_vtrace(*episode.arrays, episode.log_rhos_array, **numbers, method=method)


def assert_targets(targets: returns.Targets, expected: tuple[np.ndarray, np.ndarray], **tolerance: float) -> None:
    np.testing.assert_allclose(targets.advantages, expected[0], **(tolerance or CLOSE))
    np.testing.assert_allclose(targets.values, expected[1], **(tolerance or CLOSE))
