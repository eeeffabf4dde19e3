"""An episode with branches is one record: written and read whole, refused where its branches don't fit."""

from __future__ import annotations

import dataclasses
from typing import Any

import msgspec
import numpy as np
import pytest

from learner_jax.contracts import (
    ContractError,
    RecordLimits,
    branches_of,
    check_group,
    decode_group,
    encode_group,
    num_sequences,
)
from tests.support.branched import BRANCHES, branched, branched_group
from tests.support.trajectories import make_group


@pytest.mark.parametrize("size", [1, 5])
def test_branches_are_written_and_read(size: int) -> None:
    group = branched_group([1.0] * size, [2] * size)
    records = msgspec.msgpack.decode(encode_group(group))
    assert [(record["schema"], record["branch_tokens"]) for record in records] == [(4, [6, 6])] * size
    for read, written in zip(decode_group(encode_group(group)), group, strict=True):
        assert read.branch_tokens == written.branch_tokens == (6, 6)
        assert read.tokens.tolist() == written.tokens.tolist()


def test_a_record_without_branches_is_what_older_builds_read() -> None:
    (record,) = msgspec.msgpack.decode(encode_group(make_group(size=1)))
    assert record["schema"] == 3
    assert "branch_tokens" not in record


def test_each_branch_is_a_sequence_that_earned_what_the_episode_earned() -> None:
    episode = branched(make_group(size=1)[0], 0.5)
    episode.rewards[3] = 0.25  # paid to an earlier answer
    first, second = branches_of(episode)
    assert (first.tokens.tolist(), second.tokens.tolist()) == ([1, 2, 3, 4, 5, 6], [7, 8, 9, 10, 11, 12])
    assert first.rewards.tolist() == [0, 0, 0, 0.25, 0, 0.5]
    assert second.rewards.tolist() == [0, 0, 0, 0, 0, 0.75]
    assert first.trajectory_id == second.trajectory_id == episode.trajectory_id
    first.validate()
    second.validate()
    assert (num_sequences(episode), num_sequences(first)) == (2, 1)
    assert branches_of(first) == [first]


def _changed(**fields: Any) -> Any:
    return lambda t: dataclasses.replace(t, **fields)


def _poked(name: str, place: int, value: Any) -> Any:
    def change(t: Any) -> Any:
        array = getattr(t, name).copy()
        array[place] = value
        return dataclasses.replace(t, **{name: array})

    return change


@pytest.mark.parametrize("size", [1, 5])
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_changed(branch_tokens=(6, 5)), "add up to 11, expected 12"),
        (_changed(branch_tokens=(12,)), "2 to 10000 lengths"),
        (_changed(branch_tokens=(11, 1)), "lengths of 2 or more"),
        (_changed(branch_tokens=(-2, 14)), "lengths of 2 or more"),
        (_changed(branch_tokens=(6.0, 6.0)), "lengths of 2 or more"),
        (_changed(branch_tokens=(5, 7)), "has no context"),
        (_changed(branch_tokens=(10, 2)), "must begin a turn"),
        (lambda t: _poked("policy_version", 11, -1)(_poked("loss_mask", 11, False)(t)), "no token of a branch"),
        (_poked("turn", 6, 0), "must begin a turn"),
    ],
)
def test_branches_that_do_not_fit_are_refused(change: Any, reason: str, size: int) -> None:
    group = branched_group([1.0] * size, [2] * size)
    with pytest.raises(ContractError, match=reason):
        encode_group([change(group[0]), *group[1:]])


def test_a_record_says_its_schema() -> None:
    records = msgspec.msgpack.decode(encode_group(branched_group([1.0], [2])))
    for schema, branches in ((3, [6, 6]), (4, [])):
        with pytest.raises(ContractError, match="this build reads 3"):
            decode_group(msgspec.msgpack.encode([records[0] | {"schema": schema, "branch_tokens": branches}]))


def test_rows_hold_the_longest_branch() -> None:
    group = branched_group([1.0], [3])
    limits = RecordLimits(vocab_size=50, max_length=len(BRANCHES[0]), group_size=1)
    check_group(group, limits)
    with pytest.raises(ContractError, match="6 tokens, expected at most 5"):
        check_group(group, dataclasses.replace(limits, max_length=5))


def test_staleness_counts_from_the_oldest_token_of_all_branches() -> None:
    episode = branched(make_group(size=1)[0], 1.0, first_version=4)
    assert (episode.oldest_version, int(np.max(episode.policy_version))) == (4, 5)
