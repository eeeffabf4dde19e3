"""What the registry refuses."""

from __future__ import annotations

from learner_jax.runtime import WeirError


class RegistryError(WeirError, RuntimeError):
    """The registry can't do what was asked; says what to change. Nothing was changed."""


class NotHolderError(RegistryError):
    """Somebody else holds the lease, or took it over since: what was decided under it is out of date."""


class RegistryIntegrityError(RegistryError):
    """A row or a file is not what was registered; names it, expected and got."""
