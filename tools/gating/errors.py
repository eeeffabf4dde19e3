"""What a gate refuses."""

from __future__ import annotations

from learner_jax.runtime import WeirError


class GateError(WeirError, ValueError):
    """A gate can't be held so: its file, or what it is to compare; says what to change."""

    can_heal = False
