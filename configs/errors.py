"""What goes wrong with a configuration."""

from __future__ import annotations


class ConfigError(ValueError):
    """The configuration can't be used; every offending key is named with what was expected."""

    can_heal = False
