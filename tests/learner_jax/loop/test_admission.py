"""What a step may train on: versions that were published, and no more of them behind than the bound."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from learner_jax.batches.hygiene import clean_groups
from learner_jax.contracts.weights import Trajectory
from learner_jax.loop.admission import admitted
from learner_jax.settings.learner import GroupSettings
from tests.support.trajectories import make_group


@pytest.mark.parametrize(("version", "reason"), [(4, "stale at version 7"), (5, ""), (7, ""), (8, "never published")])
def test_versions_between_the_bound_and_the_newest_are_taken(version: int, reason: str) -> None:
    groups = [make_group("run/0", version=version), make_group("run/1", version=6)]
    taken, refused = admitted(groups, trained_version=7, max_staleness=2)
    assert [group[0].group_id for group in taken] == (["run/1"] if reason else ["run/0", "run/1"])
    assert reason in refused.get("run/0", "")
    assert bool(refused) == bool(reason)


def test_one_token_of_the_future_is_enough() -> None:
    group = make_group("run/0", version=7)
    versions = group[1].policy_version.copy()
    versions[-1] = 2**31 - 1
    group[1] = dataclasses.replace(group[1], policy_version=versions)
    taken, refused = admitted([group], trained_version=7, max_staleness=2)
    assert taken == []
    assert "version 2147483647, which this learner never published" in refused["run/0"]


@pytest.mark.parametrize("choice", ["keep", "drop"])
def test_a_group_without_finite_advantages_is_dropped_and_the_others_stay(choice: str) -> None:
    broken: list[Trajectory] = [
        dataclasses.replace(t, rewards=np.array([0, 0, 0, 3e38, 3e38], np.float32)) for t in make_group("run/0")
    ]
    sound = make_group("run/1", rewards=[0.0, 1.0])
    with np.errstate(over="ignore"):
        cleaned = clean_groups([broken, sound], GroupSettings(zero_variance=choice))
    assert cleaned.counts.dropped_groups == 1
    assert not cleaned.learned[0].any()
    assert cleaned.learned[1].all()
    assert np.isfinite(np.concatenate(cleaned.rewards)).all()
    np.testing.assert_array_equal(cleaned.rewards[1], [0.0, 1.0])
