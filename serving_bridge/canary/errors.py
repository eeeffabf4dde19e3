"""What the canary refuses."""

from __future__ import annotations

from learner_jax.runtime import WeirError


class CanaryError(WeirError, RuntimeError):
    """A rollout can't be started, changed or replayed as asked; says what to do. Nothing was changed."""


class PolicyError(WeirError, ValueError):
    """A policy file is none; says what was expected, what came, and what to change."""

    can_heal = False
