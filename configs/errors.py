"""What goes wrong with a configuration."""

from __future__ import annotations

from learner_jax.runtime import WeirError


class ConfigError(WeirError, ValueError):
    """The configuration can't be used; every offending key is named with what was expected."""

    can_heal = False
