"""What goes wrong with an evaluation: its suites, the endpoint that is asked, the results that are compared."""

from __future__ import annotations

from learner_jax.runtime import WeirError


class SuiteError(WeirError, ValueError):
    """A suite can't be used: says the file and line or key, what was expected and what came."""

    can_heal = False


class EndpointError(WeirError, RuntimeError):
    """An endpoint gave no usable answer: says what it answered, and what to change."""


class ResultError(WeirError, ValueError):
    """A folder holds no results, or they can't be used together: says why."""

    can_heal = False
