"""Wire records survive a round trip bit by bit, and broken ones are refused by name."""

from __future__ import annotations

import dataclasses

import msgspec
import numpy as np
import pytest

from learner_jax.contracts.weights import (
    ContractError,
    GoldenPrompt,
    RecordLimits,
    Trajectory,
    WeightManifest,
    check_group,
    decode_group,
    decode_manifest,
    encode_group,
    encode_manifest,
)
from tests.support.trajectories import make_group


def test_group_round_trip_is_exact() -> None:
    group = make_group(size=3)
    decoded = decode_group(encode_group(group))
    assert len(decoded) == 3
    for before, after in zip(group, decoded, strict=True):
        for field in dataclasses.fields(Trajectory):
            expected, got = getattr(before, field.name), getattr(after, field.name)
            if isinstance(expected, np.ndarray):
                assert got.dtype == expected.dtype
                np.testing.assert_array_equal(got, expected)
            else:
                assert got == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"behavior_logprobs": np.array([0, 0, 0, -1, np.nan], np.float32)}, "behavior_logprobs"),
        ({"behavior_logprobs": np.array([0, 0, 0, -1, 0.5], np.float32)}, "behavior_logprobs"),
        ({"behavior_logprobs": np.array([0, 0, 0, -1, -9999], np.float32)}, "-9999 stands for a missing one"),
        ({"rewards": np.array([0, 0, 0, 0, np.inf], np.float32)}, "rewards"),
        ({"rewards": np.array([0, 0, 0, 0, np.nan], np.float32)}, "rewards must be finite"),
        ({"sampling": {"backend": "a\x00b"}}, r"sampling: backend is a\\x00b, expected printable"),
        ({"sampling": {"backend": "x" * 257}}, "sampling: backend has 257 characters"),
        ({"rewards": np.zeros(4, np.float32)}, r"rewards has shape \(4,\), expected \(5,\)"),
        ({"tokens": np.zeros(5, np.int64)}, "tokens has dtype int64, expected int32"),
        ({"tokens": np.array([1, 2, 3, 4, -1], np.int32)}, "token ids"),
        ({"loss_mask": np.zeros(5, bool)}, "no token was sampled"),
        ({"loss_mask": np.ones(5, bool)}, "first token"),
        ({"policy_version": np.full(5, -1, np.int32)}, "policy version"),
        ({"policy_version": np.array([0, -1, -1, 1, 1], np.int32)}, "no policy sampled has a policy version"),
        ({"behavior_logprobs": np.array([np.nan, 0, 0, -1, -1], np.float32)}, "behavior_logprobs"),
        ({"loss_mask": np.array([0, 0, 0, 1, 7], np.uint8).view(bool)}, "bytes other than 0 and 1"),
        ({"turn": np.array([0, 0, 0, 1, 0], np.int32)}, "turn must start"),
        ({"turn": np.array([-1, 0, 0, 0, 0], np.int32)}, "turn must start"),
        ({"source": "dream"}, "is 'dream', expected one of rollout, online, replay"),
        ({"finish_reason": "error"}, "is 'error', expected one of stop, length, abort"),
        ({"finish_reason": "x" * 10**6}, "finish_reason is 'xxx"),
        ({"rewards": np.array([0, 0, 0, 3e38, 3e38], np.float32)}, "rewards add up to 6e.38"),
        ({"rewards": np.array([0, 0, 0, -6e5, 6e5], np.float32)}, "rewards add up to 1.2e.06"),
        ({"behavior_logprobs": np.array([0, 0, 0, -3e38, -1], np.float32)}, "at least -1000"),
        ({"behavior_logprobs": np.array([0, 0, 0, -np.inf, -1], np.float32)}, "behavior_logprobs"),
        ({"reward_parts": {"correct": float("nan")}}, "reward_parts: correct is nan, expected a number"),
        ({"reward_parts": {"correct": 1e300}}, "reward_parts: correct is 1e.300"),
        ({"reward_parts": {"correct": "1"}}, "reward_parts: correct is 1, expected a number"),
        ({"reward_parts": {"\x1b[2J": 1.0}}, r"name of a field is \\x1b\[2J, expected printable"),
        ({"reward_parts": {str(i): 1.0 for i in range(99)}}, "reward_parts has 99 fields, expected at most 64"),
        ({"sampling": {"max_tokens": "many"}}, "sampling: max_tokens is many, expected an integer from 1"),
        ({"sampling": {"max_tokens": True}}, "max_tokens is True"),
        ({"sampling": {"max_tokens": 2.5}}, "max_tokens is 2.5, expected an integer"),
        ({"sampling": {"max_tokens": 0}}, "max_tokens is 0"),
        ({"sampling": {"max_tokens": 10**30}}, "max_tokens is 1000"),
        ({"sampling": {"temperature": float("inf")}}, "temperature is inf"),
        ({"sampling": {"top_p": 1.5}}, "top_p is 1.5, expected a number from 0 to 1"),
        ({"sampling": {"stop": ["a"]}}, "sampling: stop is"),
        ({"sampling": {"seed": 10**40}}, "sampling: seed is"),
        ({"sampling": None}, "sampling is None, expected named fields"),
        ({"prompt": {"index": 10**12}}, "index is 1000000000000, expected 0, as the id says"),
        ({"prompt": {"index": False}}, "index is False"),
        ({"prompt": {"question": "\ud800"}}, "question holds a lone surrogate at character 0"),
        ({"prompt": {"question": "x" * 2**21}}, "question has 2097152 characters"),
        ({"prompt": {"question": {"a": 1}}}, "question is"),
        ({"group_size": 0}, "group_size is 0, expected an integer from 1"),
        ({"group_size": 2**40}, "group_size is 1099511627776"),
        ({"group_size": True}, "group_size is True"),
        ({"consent": 1}, "consent is 1, expected true or false"),
        ({"reward_version": "a\x00b"}, r"reward_version is a\\x00b, expected printable"),
        ({"tokenizer": "x" * 5_000_000}, "tokenizer has 5000000 characters, expected at most 256"),
        ({"trajectory_id": "run/1/0"}, "trajectory id run/1/0 is none of group run/0"),
        ({"trajectory_id": "run/0/2"}, "trajectory id run/0/2 is none of group run/0"),
        ({"trajectory_id": "run/0/00"}, "is none of group"),
        ({"trajectory_id": "run/0/\u0663"}, "is none of group"),
        ({"trajectory_id": "x" * 5_000_000}, "trajectory id x{80}... is none of group"),
        ({"trajectory_id": None}, "trajectory id None is none of group"),
        ({"group_id": "run/-1"}, "group id run/-1 is none"),
        ({"group_id": "run/01"}, "group id run/01 is none"),
        ({"group_id": "run/2147483648"}, "group id run/2147483648 is none"),
        ({"group_id": "run\n/0"}, r"group id run\\n/0 is none"),
        ({"group_id": "run/0\n"}, r"group id run/0\\n is none"),
        ({"group_id": "../../etc//0"}, "group id ../../etc//0 is none"),
        ({"group_id": "r" * 300 + "/0"}, "is none"),
    ],
)
def test_broken_trajectory_is_refused_by_name(change: dict, message: str) -> None:
    broken = dataclasses.replace(make_group()[0], **change)
    with pytest.raises(ContractError, match=message):
        broken.validate()


def test_oldest_version_ignores_prompt_tokens() -> None:
    trajectory = dataclasses.replace(make_group()[0], policy_version=np.array([-1, -1, -1, 4, 6], np.int32))
    assert trajectory.oldest_version == 4


@pytest.mark.parametrize("payload", [b"", b"\x90", b"\xc1", b"not msgpack", encode_group(make_group())[:-7]])
def test_damaged_payload_is_refused(payload: bytes) -> None:
    with pytest.raises(ContractError):
        decode_group(payload)


def test_every_flipped_bit_is_survived_or_refused() -> None:
    payload = bytearray(encode_group(make_group()))
    refused = 0
    for position in range(len(payload)):
        damaged = bytearray(payload)
        damaged[position] ^= 0x81
        try:
            decode_group(bytes(damaged))
        except ContractError:
            refused += 1
    assert refused > len(payload) // 3


def test_unknown_schema_is_refused() -> None:
    records = msgspec.msgpack.decode(encode_group(make_group()))
    records[0]["schema"] = 99
    with pytest.raises(ContractError, match="schema 99, this build reads 3"):
        decode_group(msgspec.msgpack.encode(records))


def test_a_record_of_another_schema_says_so_whatever_its_fields() -> None:
    with pytest.raises(ContractError, match="schema 1, this build reads 3; it does not tell"):
        decode_group(msgspec.msgpack.encode([{"schema": 1, "trajectory_id": "run/0/0", "colour": "red"}]))


LIMITS = RecordLimits(vocab_size=32, max_length=5, group_size=2, tokenizer="t1")


def test_a_group_within_the_limits_passes() -> None:
    check_group([dataclasses.replace(t, tokenizer="t1") for t in make_group()], LIMITS)
    check_group(make_group(), dataclasses.replace(LIMITS, tokenizer=""))


@pytest.mark.parametrize(
    ("limits", "change", "message"),
    [
        ({"vocab_size": 5}, {}, r"token id \d+ is outside of the vocabulary of 5"),
        ({"max_length": 4}, {}, "5 tokens, expected at most 4"),
        ({"group_size": 3}, {}, "group run/0 has 2 trajectories, expected 3"),
        ({"tokenizer": "t2"}, {}, "are of tokenizer t1, the learner's is t2"),
        ({}, {"tokenizer": ""}, "are of tokenizer unknown, the learner's is t1"),
        ({"run": "other"}, {}, "group run/0 is of another run, expected other/"),
        ({"run": "ru"}, {}, "is of another run"),
        ({}, {"trajectory_id": "twice"}, "holds a trajectory id twice"),
        ({}, {"finish_reason": "abort"}, "was broken off"),
        ({}, {"consent": False}, "did not consent"),
    ],
)
def test_a_group_outside_of_the_limits_is_refused_by_name(limits: dict, change: dict, message: str) -> None:
    group = [dataclasses.replace(t, **({"tokenizer": "t1"} | change)) for t in make_group()]
    with pytest.raises(ContractError, match=message):
        check_group(group, dataclasses.replace(LIMITS, **limits))


def test_groups_that_disagree_are_refused() -> None:
    with pytest.raises(ContractError, match="disagree"):
        decode_group(encode_group(make_group(size=2)[:1]))


def test_samples_out_of_their_places_are_refused() -> None:
    records = msgspec.msgpack.decode(encode_group(make_group(size=2)))
    with pytest.raises(ContractError, match="run/0/1 stands in place 0"):
        decode_group(msgspec.msgpack.encode(records[::-1]))


@pytest.mark.parametrize("field", ["prompt", "sampling"])
def test_nothing_nested_is_read(field: str) -> None:
    records = msgspec.msgpack.decode(encode_group(make_group()))
    records[0][field] = {"a": list(range(1000))}
    with pytest.raises(ContractError, match="not a group of trajectories"):
        decode_group(msgspec.msgpack.encode(records))


def test_a_text_that_is_none_is_refused() -> None:
    payload = encode_group([dataclasses.replace(t, reward_version="surrogate") for t in make_group()])
    with pytest.raises(ContractError, match="not a group"):
        decode_group(payload.replace(b"surrogate", b"\xed\xa0\x80" * 3))


def test_manifest_round_trip_and_schema() -> None:
    manifest = WeightManifest(
        schema=2,
        version=3,
        base_version=None,
        format="full",
        step=2,
        parent=2,
        run="demo",
        content_sha256="0" * 64,
        num_changed=None,
        files=[],
        tensors=[],
        golden=[GoldenPrompt(tokens=[1, 2], logprobs=[-0.25])],
    )
    assert decode_manifest(encode_manifest(manifest)) == manifest
    with pytest.raises(ContractError, match="schema 3, this build reads 2"):
        decode_manifest(encode_manifest(msgspec.structs.replace(manifest, schema=3)))
    with pytest.raises(ContractError, match="schema 1, this build reads 2"):
        decode_manifest(b'{"schema": 1, "version": 3, "format": "full"}')
    with pytest.raises(ContractError, match="not a weight manifest"):
        decode_manifest(encode_manifest(manifest)[:-20])
