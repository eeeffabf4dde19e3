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

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from learner_jax.losses.policy import importance_ratios
from learner_jax.losses.recurrence import reverse_linear_recurrence

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


def _next_values(
    rewards: Float[Array, "T"],
    values: Float[Array, "T"],
    discounts: Float[Array, "T"],
    decisions: Bool[Array, "T"],
    method: str,
) -> tuple[Float[Array, "T"], Float[Array, "T"]]:
    """(values at decisions and 0 elsewhere, one-step return r_t + gamma_t F_{t+1} at every token).

    F is the value at a decision and the one-step return elsewhere: what the next decision is worth, brought back over
    the tokens in between.
    """
    at_decisions = jnp.where(decisions, values, 0.0)
    carried = reverse_linear_recurrence(
        jnp.where(decisions, at_decisions, rewards), jnp.where(decisions, 0.0, discounts), method=method
    )
    return at_decisions, rewards + discounts * _shift_left(carried)


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
    at_decisions, one_step = _next_values(rewards, values, discounts, decisions, method)
    delta = jnp.where(decisions, one_step - at_decisions, 0.0)
    traces = discounts * jnp.where(decisions, trace_decay, 1.0)
    advantages = jnp.where(decisions, reverse_linear_recurrence(delta, traces, method=method), 0.0)
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
    at_decisions, one_step = _next_values(rewards, values, discounts, decisions, method)
    ratios = importance_ratios(jnp.where(decisions, log_rhos, 0.0))
    rho = jnp.minimum(clip_rho, ratios)
    delta = jnp.where(decisions, rho * (one_step - at_decisions), 0.0)
    c = jnp.where(decisions, trace_decay * jnp.minimum(clip_c, ratios), 1.0)
    errors = reverse_linear_recurrence(delta, discounts * c, method=method)  # v - V, brought back between decisions
    # gamma q_{t+1} - gamma V_{t+1} is gamma lambda (v_{t+1} - V_{t+1}) of the next decision.
    ahead = discounts * _shift_left(errors)
    advantages = one_step + trace_decay * ahead - at_decisions
    if weighted:
        advantages = rho * advantages
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
