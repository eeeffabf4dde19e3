"""KL to the frozen reference: estimators per token on one sequence, and the control of its coefficient.

What each estimator's gradient is, for tokens of the current policy pi and reference q (Schulman, "Approximating KL
divergence", 2020; Tang and Munos, arXiv 2506.09477; Liu et al., arXiv 2510.01555):

    estimator  value             gradient as a loss term            gradient as a reward term
    k1         log pi/q          zero in expectation (refused)      that of KL(pi || q)
    k2         (log pi/q)^2 / 2  that of KL(pi || q)                E[k2 score], of no KL
    k3         q/pi-1-log q/pi   that of KL(q || pi), forward       that of KL(pi || q) less that of KL(q || pi)

A reward term lets no gradient through; the policy's objective multiplies it with the score. A loss term that is
`importance_weighted` is multiplied by current / behaviour ratio with its gradient: E_behaviour[ratio k] is the
quantity itself for tokens of any policy, so k1 and k3 then have exactly the gradient of KL(pi || q) (DeepSeek-V3.2,
arXiv 2512.02556, equation 7).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from learner_jax.losses.policy import MAX_LOG_RATIO

#: Of one sequence, or of rows of them, since the estimators take token by token; on the host where rewards are.
Tokens = Float[Array | np.ndarray, "*T"]


def k1(logprobs: Tokens, reference_logprobs: Tokens) -> Tokens:
    """log pi/q: unbiased, negative on about half of the tokens."""
    return logprobs - reference_logprobs


def k2(logprobs: Tokens, reference_logprobs: Tokens) -> Tokens:
    """(log pi/q)^2 / 2: never negative, biased."""
    return 0.5 * jnp.square(logprobs - reference_logprobs)


def k3(logprobs: Tokens, reference_logprobs: Tokens) -> Tokens:
    """q/pi - 1 - log q/pi: never negative, unbiased (GRPO, arXiv 2402.03300, equation 4).

    log q/pi is clipped at 20 nats, beyond which the estimate is constant: nothing overflows, and no slope points away
    from the reference.
    """
    difference = jnp.minimum(reference_logprobs - logprobs, MAX_LOG_RATIO)
    return jnp.expm1(difference) - difference


ESTIMATORS: dict[str, Callable[[Any, Any], Any]] = {"k1": k1, "k2": k2, "k3": k3}


def adapted_coefficient(coefficient: float, measured: float, *, target: float, horizon: float) -> float:
    """One step of the proportional controller of Ziegler et al. (arXiv 1909.08593, section 2.2).

    coefficient * (1 + clip(measured / target - 1, -0.2, 0.2) / horizon); `measured` and `target` in nats per token.
    A measurement that is not finite changes nothing.
    """
    if not math.isfinite(measured):
        return coefficient
    error = min(max(measured / target - 1.0, -0.2), 0.2)
    return coefficient * (1.0 + error / horizon)
