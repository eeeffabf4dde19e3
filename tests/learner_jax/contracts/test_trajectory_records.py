"""Records of any content: what is written is read back, bit by bit, and bytes of anybody's are refused or valid."""

from __future__ import annotations

import dataclasses
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from learner_jax.contracts.group_arrays import ARRAY_DTYPES, NOT_SAMPLED
from learner_jax.contracts.record_bounds import MAX_PROMPT_INDEX, MAX_REWARD, MAX_VERSION, MIN_LOGPROB
from learner_jax.contracts.trajectory import (
    TRAJECTORY_SCHEMA,
    ContractError,
    Trajectory,
    check_identity,
    decode_group,
    encode_group,
)
from tests.support.properties import examples
from tests.support.trajectories import make_group

PRINTABLE = st.text(st.characters(categories=["L", "N", "P", "S"]), max_size=8)
#: None of the names that have a type and bounds of their own.
KEYS = PRINTABLE.map(lambda text: f"_{text}")
SCALARS = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
)
RUNS = st.from_regex(r"[A-Za-z0-9_-]{1,8}(/[A-Za-z0-9_-]{1,4})?", fullmatch=True)


def floats(lowest: float, highest: float, size: int) -> st.SearchStrategy[list[float]]:
    return st.lists(st.floats(lowest, highest, width=32), min_size=size, max_size=size)


@st.composite
def trajectories(draw: st.DrawFn, group_id: str, sample: int, size: int, judged: bool) -> Trajectory:
    """A valid answer of any content; every array tells each of its places from the others."""
    length = draw(st.integers(2, 12))
    mask = np.array([False, *draw(st.lists(st.booleans(), min_size=length - 1, max_size=length - 1))])
    mask[draw(st.integers(1, length - 1))] = True
    versions = draw(st.lists(st.integers(0, MAX_VERSION), min_size=length, max_size=length))
    turns = draw(st.lists(st.integers(0, 3), min_size=length, max_size=length))
    judged = judged or draw(st.booleans())
    rewards = draw(floats(-MAX_REWARD / 16, MAX_REWARD / 16, length)) if judged else [0.0] * length
    tokens = draw(st.lists(st.integers(0, 2**31 - 1), min_size=length, max_size=length))
    return Trajectory(
        trajectory_id=f"{group_id}/{sample}",
        group_id=group_id,
        group_size=size,
        prompt=draw(st.dictionaries(KEYS, PRINTABLE, max_size=2)) | {"index": int(group_id.rpartition("/")[2])},
        tokens=np.array(tokens, np.int32),
        loss_mask=mask,
        behavior_logprobs=np.array(draw(floats(MIN_LOGPROB, 0.0, length)), np.float32),
        policy_version=np.where(mask, versions, NOT_SAMPLED).astype(np.int32),
        turn=np.cumsum(turns, dtype=np.int32),
        rewards=np.array(rewards, np.float32),
        reward_parts=draw(st.dictionaries(KEYS, st.floats(-MAX_REWARD, MAX_REWARD), max_size=2)) if judged else {},
        verdict=draw(st.sampled_from(["pass", "fail"] if judged else ["timeout", "crashed", "refused", "error"])),
        finish_reason=draw(st.sampled_from(["stop", "length", "abort"])),
        sampling=draw(st.dictionaries(KEYS, SCALARS | PRINTABLE, max_size=2)),
        reward_version=draw(PRINTABLE),
        source=draw(st.sampled_from(["rollout", "online", "replay"])),
        consent=draw(st.booleans()),
        tokenizer=draw(PRINTABLE),
        verdict_reason="" if judged else draw(PRINTABLE),
    )


@st.composite
def groups(draw: st.DrawFn) -> list[Trajectory]:
    group_id = f"{draw(RUNS)}/{draw(st.integers(0, MAX_PROMPT_INDEX))}"
    size = draw(st.sampled_from([1, 2, 4, 5]))  # on both sides of where arrays are looked at together
    judged = draw(st.booleans())  # all of them, or some
    return [draw(trajectories(group_id, sample, size, judged)) for sample in range(size)]


def bits(trajectory: Trajectory) -> dict[str, Any]:
    """All fields; arrays as their bytes, so that -0.0 is not 0.0."""
    found = {field.name: getattr(trajectory, field.name) for field in dataclasses.fields(trajectory)}
    return found | {name: (found[name].dtype, found[name].tobytes()) for name in ARRAY_DTYPES}


@given(groups())
def test_what_is_written_is_read_back_bit_by_bit(group: list[Trajectory]) -> None:
    payload = encode_group(group)
    again = decode_group(payload)
    assert [bits(trajectory) for trajectory in again] == [bits(trajectory) for trajectory in group]
    assert encode_group(again) == payload


def damage(trajectory: Trajectory, what: str, place: int) -> None:
    """Breaks one thing in the arrays, at any place."""
    values: dict[str, Any] = {
        "tokens": -1,
        "behavior_logprobs": [np.nan, 0.5, -2000.0, np.inf][place % 4],
        "policy_version": -1 - place % 2 if trajectory.loss_mask[place] else 3,
        "turn": -1,
        "rewards": [np.nan, np.inf, -np.inf, 2e6][place % 4],
    }
    match what:
        case "no truth value":
            trajectory.loss_mask.view(np.uint8)[place] = 2
        case "nothing sampled":
            trajectory.loss_mask[:], trajectory.policy_version[:] = False, NOT_SAMPLED
        case "sampled without context":
            trajectory.loss_mask[0], trajectory.policy_version[0] = True, 3
        case _:
            getattr(trajectory, what)[place] = values[what]


DAMAGES = sorted({*ARRAY_DTYPES, "no truth value", "nothing sampled", "sampled without context"} - {"loss_mask"})


@examples(3.0)
@given(st.sampled_from([1, 3, 4, 5]), st.integers(0, 4), st.sampled_from(DAMAGES), st.integers(0, 4))
def test_a_broken_array_is_refused_whatever_stands_beside_it(size: int, sample: int, what: str, place: int) -> None:
    """Looked at alone or with the whole group's: both say the same, and nothing of it is written."""
    group = [dataclasses.replace(t, loss_mask=t.loss_mask.copy()) for t in make_group("run/3", size=size)]
    broken = group[sample % size]
    damage(broken, what, place)
    with pytest.raises(ContractError, match=broken.trajectory_id):
        broken.validate()
    with pytest.raises(ContractError, match=broken.trajectory_id):
        encode_group(group)


def read_or_refused(payload: bytes) -> None:
    """A group that keeps its contract, or `ContractError`: nothing else comes of bytes."""
    try:
        group = decode_group(payload)
    except ContractError as error:
        message = str(error)
    else:
        message = ""
    assert message.isprintable()
    if message:
        return
    for trajectory in group:
        trajectory.validate()
    check_identity(group)
    assert [bits(t) for t in decode_group(encode_group(group))] == [bits(t) for t in group]


@given(st.binary(max_size=200))
def test_bytes_of_anybody_are_refused(payload: bytes) -> None:
    read_or_refused(payload)


@given(st.integers(1, 5), st.data())
def test_a_record_with_bytes_that_changed_is_refused_or_valid(size: int, data: st.DataObject) -> None:
    payload = bytearray(encode_group(make_group("run/3", size=size)))
    for _ in range(data.draw(st.integers(1, 4))):
        payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    read_or_refused(bytes(payload[: data.draw(st.integers(0, len(payload)) | st.just(len(payload)))]))


NESTED = st.recursive(
    SCALARS | st.binary(max_size=12) | st.text(max_size=6) | st.sampled_from([float("nan"), float("-inf")]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@examples(2.0)
@given(st.integers(1, 5), st.data())
def test_a_field_of_any_type_is_refused_or_valid(size: int, data: st.DataObject) -> None:
    wires = msgspec.msgpack.decode(encode_group(make_group("run/3", size=size)))
    for wire in wires[: data.draw(st.integers(1, 2))]:
        name = data.draw(st.sampled_from(sorted(wire)))
        if data.draw(st.booleans()):
            wire[name] = data.draw(NESTED)
        elif name in ARRAY_DTYPES:
            dtype = ARRAY_DTYPES[name]
            wire[name] = data.draw(st.binary(min_size=len(wire[name]), max_size=len(wire[name]) + dtype.itemsize))
        else:
            del wire[name]
    read_or_refused(msgspec.msgpack.encode(wires))


@given(st.lists(st.integers(0, 3), min_size=1, max_size=5))
def test_samples_in_another_order_or_number_are_refused(order: list[int]) -> None:
    wires = msgspec.msgpack.decode(encode_group(make_group("run/3", size=4)))
    if order != [0, 1, 2, 3]:
        with pytest.raises(ContractError, match="run/3"):
            decode_group(msgspec.msgpack.encode([wires[sample] for sample in order]))


@given(st.integers(-(2**40), 2**40).filter(lambda schema: schema != TRAJECTORY_SCHEMA))
def test_another_schema_is_named(schema: int) -> None:
    wires = msgspec.msgpack.decode(encode_group(make_group("run/3")))
    wires[-1]["schema"] = schema
    with pytest.raises(ContractError, match=f"trajectory schema {schema}, this build reads {TRAJECTORY_SCHEMA}"):
        decode_group(msgspec.msgpack.encode(wires))
