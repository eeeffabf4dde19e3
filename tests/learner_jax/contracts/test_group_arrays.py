"""One look at a group finds whatever a look at each of its answers finds."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from learner_jax.contracts import ContractError, Trajectory
from learner_jax.contracts.group_arrays import ARRAY_DTYPES, arrays_hold
from tests.support.trajectories import make_group

VALUES: dict[str, list[Any]] = {
    "tokens": [-1, 0, 7],
    "loss_mask": [False, True],
    "behavior_logprobs": [np.nan, np.inf, -np.inf, 1.0, 5e-5, -2000.0, -3.0],
    "policy_version": [-2, -1, 0, 5],
    "turn": [-1, 0, 1],
    "rewards": [np.nan, np.inf, 2e6, -2e6, 0.5],
}


def sound(trajectory: Trajectory) -> bool:
    try:
        trajectory.validate()
    except ContractError:
        return False
    return True


@pytest.mark.parametrize("sample", [0, 1, 3])
@pytest.mark.parametrize("name", ARRAY_DTYPES)
def test_a_damaged_element_anywhere_is_seen(name: str, sample: int) -> None:
    group = make_group("run/0", size=4, prompt_tokens=2, answer_tokens=3, rewards=[0.0, 1.0] * 2)
    assert arrays_hold(group)
    verdicts = set()
    for place in range(len(group[sample].tokens)):
        for value in VALUES[name]:
            array = getattr(group[sample], name).copy()
            array[place] = value
            damaged = list(group)
            damaged[sample] = dataclasses.replace(group[sample], **{name: array})
            assert arrays_hold(damaged) == sound(damaged[sample]), (name, place, value)
            verdicts.add(arrays_hold(damaged))
    assert verdicts == {True, False}


@pytest.mark.parametrize("name", ARRAY_DTYPES)
def test_another_shape_or_type_is_seen(name: str) -> None:
    group = make_group("run/0", size=2, rewards=[0.0, 1.0])
    array = getattr(group[1], name)
    for other in (array[:-1], array[:0], array.reshape(1, -1), array.astype(np.float64)):
        assert not arrays_hold([group[0], dataclasses.replace(group[1], **{name: other})])


def test_what_needs_a_look_at_each_answer_is_left_to_that() -> None:
    group = make_group("run/0", size=2, rewards=[0.0, 1.0])
    assert not arrays_hold([])
    assert not arrays_hold([group[0], dataclasses.replace(group[1], verdict="timeout")])


def test_an_answer_without_a_sampled_token_and_one_without_a_context_are_seen() -> None:
    group = make_group("run/0", size=2, rewards=[0.0, 1.0])
    for first, rest in ((False, False), (True, True)):
        mask = np.full(len(group[1].tokens), rest)
        mask[0] = first
        version = np.where(mask, 1, -1).astype(np.int32)
        damaged = dataclasses.replace(group[1], loss_mask=mask, policy_version=version)
        assert not sound(damaged)
        assert not arrays_hold([group[0], damaged])
