"""Which settings of a run may change when it is carried on, and which it keeps for its life."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from configs.errors import ConfigError
from configs.schema import Config

#: Settings, or whole tables, that a run keeps, and why.
_KEPT: Mapping[str, str] = {
    "run.name": "ids of groups and versions are made from it",
    "run.seed": "it decides which prompts come next",
    "model": "the policy began as this model",
    "task": "the prompts are numbered in it, and what is held out depends on it",
    "warm_start": "the policy began with it",
    "rollout.group_size": "groups of that many answers wait in the queue",
    "rollout.temperature": "answers in the queue were sampled at it",
    "learner.loss.value.model": "the checkpoint holds what it needs and nothing else",
    "learner.loss.kl.reference": "the KL so far was measured against it",
    "learner.loss.kl.reset_every": "the checkpoint holds the reference only where it moves",
    "learner.optimizer.moments": "the checkpoint holds moments of that kind",
    "learner.publish_dtype": "published versions are in it",
    "serving.dtype": "published versions are in it",
    "store.database": "the queue and the run's progress are there",
    "store.blobs": "payloads of the queue are there",
    "store.weights": "published versions are there",
}
#: Settings of kept tables that may change all the same: they change neither the problems nor the scores.
_FREE = ("task.score_timeout_s", "task.score_processes")
#: What only one process is told, or where a run happens to be: no setting of the run.
_OF_A_PROCESS = ("run.directory", "learner.hosts.index", "learner.hosts.coordinator")


@dataclass(frozen=True)
class Change:
    """A setting with another value than before; None where it was, or is, not set."""

    setting: str
    before: Any
    now: Any

    def __str__(self) -> str:
        return f"{self.setting}: {self.before!r} before, {self.now!r} now"


def changes(before: Config, now: Config) -> tuple[Change, ...]:
    """What a run that is carried on does otherwise from now on.

    Raises:
      ConfigError: a setting differs that the run keeps for its life; each is named with the reason.
    """
    flat_before, flat_now = _flat(before.model_dump(mode="json")), _flat(now.model_dump(mode="json"))
    found = [
        Change(setting, flat_before.get(setting), flat_now.get(setting))
        for setting in sorted(flat_before.keys() | flat_now.keys())
        if flat_before.get(setting) != flat_now.get(setting) and setting not in _OF_A_PROCESS
    ]
    refused = [f"{change} ({why})" for change in found if (why := _reason(change))]
    if refused:
        raise ConfigError(
            f"the run keeps these settings for its life: {'; '.join(refused)}; give them as they were, or another "
            f"place for a new run by --set run.directory=DIR"
        )
    return tuple(found)


def _reason(change: Change) -> str | None:
    if change.setting == "learner.sequence_length" and change.now < change.before:
        return "longer trajectories may wait in the queue"
    if change.setting in _FREE:
        return None
    return next(
        (why for kept, why in _KEPT.items() if change.setting == kept or change.setting.startswith(f"{kept}.")), None
    )


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
