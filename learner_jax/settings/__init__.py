"""The learner's settings, each with its range; free of JAX."""

from learner_jax.settings.advantage import AdvantageSettings
from learner_jax.settings.doors import ESTIMATOR_DOOR, OBJECTIVE_DOOR, OTHER_ESTIMATORS
from learner_jax.settings.hosts import HOSTS_SECRET, HostsSettings, MeshSettings
from learner_jax.settings.learner import (
    GroupSettings,
    KLSettings,
    LearnerSettings,
    LossSettings,
    OptimizerSettings,
    PolicySettings,
    ValueSettings,
    WarmStartSettings,
)
from learner_jax.settings.online import OnlineSettings
from learner_jax.settings.supervised import SupervisedSettings

__all__ = [
    "ESTIMATOR_DOOR",
    "HOSTS_SECRET",
    "OBJECTIVE_DOOR",
    "OTHER_ESTIMATORS",
    "AdvantageSettings",
    "GroupSettings",
    "HostsSettings",
    "KLSettings",
    "LearnerSettings",
    "LossSettings",
    "MeshSettings",
    "OnlineSettings",
    "OptimizerSettings",
    "PolicySettings",
    "SupervisedSettings",
    "ValueSettings",
    "WarmStartSettings",
]
