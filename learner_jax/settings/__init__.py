"""The learner's settings, each with its range; free of JAX."""

from learner_jax.settings.hosts import HOSTS_SECRET, HostsSettings, MeshSettings
from learner_jax.settings.learner import (
    AdvantageSettings,
    GroupSettings,
    KLSettings,
    LearnerSettings,
    LossSettings,
    OptimizerSettings,
    PolicySettings,
    ValueSettings,
    WarmStartSettings,
)

__all__ = [
    "HOSTS_SECRET",
    "AdvantageSettings",
    "GroupSettings",
    "HostsSettings",
    "KLSettings",
    "LearnerSettings",
    "LossSettings",
    "MeshSettings",
    "OptimizerSettings",
    "PolicySettings",
    "ValueSettings",
    "WarmStartSettings",
]
