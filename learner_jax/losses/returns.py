"""Advantages and value targets from a value function: GAE and V-trace over decisions, on one sequence.

A sequence is T tokens, of which some are *decisions*: every sampled token (token segments), or the first sampled token
of every turn (turn segments, where the whole turn is one action). Tokens between decisions are passed through: rewards
on them count, discounts on them count (time is kept), but they have no temporal difference and no trace of their own.

Conventions, for every function here:
  rewards[t]    earned by token t, known after it.
  values[t]     value of the state in which token t is chosen, i.e. of tokens[:t]; read at decisions only.
  discounts[t]  discount from token t to token t+1; 0 on the last token of a finished episode. An episode that was cut
                off is finished by adding its bootstrap to the last reward: r_T + gamma V(tokens) (`with_bootstrap`).
  decisions[t]  whether token t is a decision.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from learner_jax.losses.policy import importance_ratios
from learner_jax.losses.recurrence import chosen_method, reverse_linear_recurrence

#: A setting, or one that is traced.
Scalar = float | Float[Array, ""]


class Targets(NamedTuple):
    """What policy and value function learn from; no gradient flows through either.

    Attributes:
      advantages: at decisions, 0 elsewhere.
      values: regression targets of the value function at decisions, 0 elsewhere.
    """

    advantages: Float[Array, "T"]
    values: Float[Array, "T"]


def with_bootstrap(
    rewards: Float[Array, "T"], values_after: Float[Array, "T"], bootstraps: Float[Array, "T"]
) -> Float[Array, "T"]:
    """Rewards with the value of what was cut off: `bootstraps[t]` is gamma on the last token of a cut-off episode.

    Args:
      values_after: value of the state after token t, i.e. of tokens[:t+1].
      bootstraps: 0 everywhere else, so that a finished episode gets nothing (Sutton & Barto, 2nd ed., section 3.4).
    """
    return rewards + jnp.where(bootstraps > 0, bootstraps * values_after, 0.0)


def _differences(
    rewards: Float[Array, "T"], at_decisions: Float[Array, "T"], discounts: Float[Array, "T"]
) -> Float[Array, "T"]:
    """r_t + gamma_t V_{t+1} - V_t, with V = 0 where no decision is: without what tokens between decisions bring."""
    return rewards + discounts * _shift_left(at_decisions) - at_decisions


class _Traced(NamedTuple):
    """What the temporal differences of the decisions add up to, brought back over all tokens.

    Attributes:
      errors: sum of the weighted differences from a token on.
      advantages: difference of a decision and what follows it, before the weight; at other tokens it has no meaning.
    """

    errors: Float[Array, "T"]
    advantages: Float[Array, "T"]


#: Importance ratio of a decision, if there are any -> (weight of its difference, trace to the differences behind it).
Weights = Callable[[Any], tuple[Scalar, Scalar]]


def _traced(
    rewards: Float[Array, "T"],
    at_decisions: Float[Array, "T"],
    discounts: Float[Array, "T"],
    decisions: Bool[Array, "T"],
    ratios: Float[Array, "T"] | None,
    weights: Weights,
    trace_decay: Scalar,
    method: str,
) -> _Traced:
    """The two recurrences of an estimator: what tokens between decisions bring, and the errors.

    With R the one-step return brought back over tokens between decisions, and 0 at decisions:
    delta_t = base_t + gamma R_{t+1}, error_t = weight_t delta_t + gamma trace_t error_{t+1} at decisions,
    R_t = base_t + gamma R_{t+1}, error_t = gamma error_{t+1} elsewhere.
    """
    base = _differences(rewards, at_decisions, discounts)
    if chosen_method(rewards.shape[0], method) == "sequential":
        return _traced_in_one_scan(base, discounts, decisions, ratios, weights, trace_decay)
    weight, trace = weights(ratios)
    carried = reverse_linear_recurrence(
        jnp.where(decisions, 0.0, base), jnp.where(decisions, 0.0, discounts), method=method
    )
    deltas = base + discounts * _shift_left(carried)
    errors = reverse_linear_recurrence(
        jnp.where(decisions, weight * deltas, 0.0), discounts * jnp.where(decisions, trace, 1.0), method=method
    )
    return _Traced(errors, deltas + trace_decay * discounts * _shift_left(errors))


def _traced_in_one_scan(
    base: Float[Array, "T"],
    discounts: Float[Array, "T"],
    decisions: Bool[Array, "T"],
    ratios: Float[Array, "T"] | None,
    weights: Weights,
    trace_decay: Scalar,
) -> _Traced:
    """As `_traced`. Every array that a scan reads is slow, so that the sign bit of a discount says "no decision"."""

    def step(following: tuple[Array, Array], at_t: tuple[Array, Array, Any]) -> tuple[tuple[Array, Array], _Traced]:
        between, error = following
        base_t, signed, ratio = at_t
        is_decision, discount = ~jnp.signbit(signed), jnp.abs(signed)
        weight, trace = weights(ratio)
        delta, later = base_t + discount * between, discount * error
        error_t = jnp.where(is_decision, weight * delta + trace * later, later)
        return (jnp.where(is_decision, 0.0, delta), error_t), _Traced(error_t, delta + trace_decay * later)

    zero = jnp.zeros((), base.dtype)
    signed = jnp.where(decisions, discounts, -discounts)
    return jax.lax.scan(step, (zero, zero), (base, signed, ratios), reverse=True)[1]


def _shift_left(x: Float[Array, "T"]) -> Float[Array, "T"]:
    return jnp.concatenate([x[1:], jnp.zeros((1,), x.dtype)])


def generalized_advantages(
    rewards: Float[Array, "T"],
    values: Float[Array, "T"],
    discounts: Float[Array, "T"],
    decisions: Bool[Array, "T"],
    *,
    trace_decay: Scalar,
    method: str = "auto",
) -> Targets:
    """Generalised advantage estimation (Schulman et al., arXiv 1506.02438, equations 11, 12 and 16).

    A_t = delta_t + gamma lambda A_{t+1}, with delta_t = r_t + gamma V(s_{t+1}) - V(s_t), over decisions; the value
    target is A_t + V_t, the lambda-return.
    """
    at_decisions = jnp.where(decisions, values, 0.0)
    errors = _traced(
        rewards, at_decisions, discounts, decisions, None, lambda _: (1.0, trace_decay), trace_decay, method
    ).errors
    advantages = jnp.where(decisions, errors, 0.0)
    return jax.lax.stop_gradient(Targets(advantages=advantages, values=advantages + at_decisions))


def vtrace(
    rewards: Float[Array, "T"],
    values: Float[Array, "T"],
    discounts: Float[Array, "T"],
    decisions: Bool[Array, "T"],
    log_rhos: Float[Array, "T"],
    *,
    trace_decay: Scalar = 1.0,
    clip_rho: Scalar = 1.0,
    clip_c: Scalar = 1.0,
    weighted: bool = True,
    method: str = "auto",
) -> Targets:
    """V-trace (IMPALA, Espeholt et al., arXiv 1802.01561, section 4.1 and remark 2 for lambda).

    v_t = V_t + sum over k >= t of gamma^(k-t) (product of c_i for t <= i < k) rho_k delta_k, where
    delta_k = r_k + gamma V_{k+1} - V_k, rho_k = min(clip_rho, ratio_k), c_k = lambda min(clip_c, ratio_k).
    The advantages are those of the policy gradient (section 4.2), with the ratio inside:
    rho_t (r_t + gamma q_{t+1} - V_t). The next state is worth q = lambda v + (1 - lambda) V, which is the paper's v at
    lambda = 1.

    Args:
      log_rhos: log(target policy / behaviour policy) of each decision's action, nats; read at decisions only.
      weighted: whether the advantages hold rho_t; without it the policy's objective has to weight them.
    """
    at_decisions = jnp.where(decisions, values, 0.0)
    ratios = importance_ratios(jnp.where(decisions, log_rhos, 0.0))

    def weights(ratio: Array) -> tuple[Array, Array]:
        return jnp.minimum(clip_rho, ratio), trace_decay * jnp.minimum(clip_c, ratio)

    # errors are v - V, brought back between decisions; gamma q_{t+1} - gamma V_{t+1} is gamma lambda errors_{t+1}.
    errors, advantages = _traced(rewards, at_decisions, discounts, decisions, ratios, weights, trace_decay, method)
    if weighted and isinstance(clip_rho, float) and isinstance(clip_c, float) and clip_rho == clip_c:
        advantages = errors  # the same sum; XLA leaves the other one out
    elif weighted:
        advantages = jnp.minimum(clip_rho, ratios) * advantages
    return jax.lax.stop_gradient(
        Targets(
            advantages=jnp.where(decisions, advantages, 0.0),
            values=jnp.where(decisions, at_decisions + errors, 0.0),
        )
    )


def turn_log_ratios(
    log_ratios: Float[Array, "T"],
    loss_mask: Bool[Array, "T"],
    decision_index: Int[Array, "T"],
    *,
    mean: bool,
) -> Float[Array, "T"]:
    """Log of each turn's importance ratio, at the turn's decision token; 0 elsewhere.

    The ratio of a whole turn is the product of its tokens' ratios. With `mean`, their geometric mean (GSPO, arXiv
    2507.18071, equation 7), which does not vanish with the length but is no longer the ratio of the two policies.

    Args:
      decision_index: for every token, the position of the decision that it belongs to.
    """
    total = jnp.zeros_like(log_ratios).at[decision_index].add(jnp.where(loss_mask, log_ratios, 0.0))
    if mean:
        count = jnp.zeros_like(log_ratios).at[decision_index].add(loss_mask.astype(log_ratios.dtype))
        total = total / jnp.maximum(count, 1.0)
    return total
