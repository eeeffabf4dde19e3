"""Whether code of the user's own that a run names can be found; what needs JAX is looked for, not imported."""

from __future__ import annotations

from collections.abc import Iterator

from configs.schema import Config
from learner_jax.runtime import Door, source_of
from learner_jax.settings import ESTIMATOR_DOOR, OBJECTIVE_DOOR
from serving_bridge.checks import Finding
from serving_bridge.telemetry import LOGGER_DOOR, require_packages


def own_code_findings(config: Config) -> Iterator[Finding]:
    """Modules of losses that are not there.

    Raises:
      DoorError: a logger can't be imported, or called, or lacks its package.
    """
    loss = config.learner.loss
    named: tuple[tuple[Door, str], ...] = (
        (OBJECTIVE_DOOR, loss.policy.objective),
        (ESTIMATOR_DOOR, loss.advantage.estimator),
    )
    for door, name in named:
        if ":" in name and source_of(name) is None:
            yield Finding(
                door.setting,
                "a module in the working folder, or an installed one",
                f"{name!r}, whose module is not there",
                "start in the folder that holds it, or correct the name",
            )
    require_packages(config.run.loggers)
    for name in config.run.loggers:
        LOGGER_DOOR.open(name)
