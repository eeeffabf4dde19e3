"""The doors of the learner: what its settings name, from Weir or from outside."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

from learner_jax.runtime import Door

OBJECTIVE_DOOR = Door(
    kind="objective",
    setting="learner.loss.policy.objective",
    built_in={
        name: f"learner_jax.losses.objectives:{name}"
        for name in ("ppo", "decoupled_ppo", "cispo", "gspo", "policy_gradient")
    },
)

#: Estimators that take the rewards of one group; those of whole batches and with a value function are none.
ESTIMATOR_DOOR = Door(
    kind="advantage",
    setting="learner.loss.advantage.estimator",
    built_in={name: f"learner_jax.losses.advantages:{name}" for name in ("grpo", "dr_grpo", "rloo")},
    positional=("rewards",),
)
#: The estimators that are no function of one group.
OTHER_ESTIMATORS = ("reinforce_pp", "reinforce_pp_baseline", "gae", "vtrace")


#: Names that come with Weir, for people.
ESTIMATORS = ", ".join((*ESTIMATOR_DOOR.built_in, *OTHER_ESTIMATORS))
OBJECTIVES = ", ".join(OBJECTIVE_DOOR.built_in)


def _known(door: Door, also: tuple[str, ...] = ()) -> AfterValidator:
    """Takes names that are known, and those of the form "package.module:name", which are not imported here."""

    def check(name: str) -> str:
        if ":" in name or name in door.built_in or name in also or name in door.names():
            return name
        known = ", ".join(dict.fromkeys((*door.built_in, *also, *door.names())))
        raise ValueError(f'{name!r} is unknown; expected one of {known}, or "package.module:name" of your own')

    return AfterValidator(check)


ObjectiveName = Annotated[str, Field(max_length=200), _known(OBJECTIVE_DOOR)]
EstimatorName = Annotated[str, Field(max_length=200), _known(ESTIMATOR_DOOR, OTHER_ESTIMATORS)]
