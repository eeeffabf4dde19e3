"""What the page of the live view raises."""

from __future__ import annotations

from learner_jax.runtime import WeirError


class DashboardError(WeirError, ValueError):
    """The page can't be served as asked; says what to change."""
