"""Malformed trajectories, in the queue's database and at its door: each must end as a dead letter or an error."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import msgspec
import numpy as np

from learner_jax.contracts import (
    NOT_SAMPLED,
    ContractError,
    RecordLimits,
    Trajectory,
    check_group,
    decode_group,
    encode_group,
)
from tools.testing.fuzz.mutations import Mutation, Rng, damaged_bytes, damaged_field, one_record

LIMITS = RecordLimits(vocab_size=50, max_length=12, group_size=2, tokenizer="fuzz", run="fuzz")
_DTYPES = {"tokens": "<i4", "loss_mask": "?", "behavior_logprobs": "<f4", "policy_version": "<i4", "turn": "<i4"}
_ARRAYS = (*_DTYPES, "rewards")
_HUGE = 200_000
#: stands for lone surrogates, which no text can be encoded with
_SURROGATES = "surrogate"


def valid_group(rng: Rng, number: int) -> list[Trajectory]:
    """Two answers to one prompt that keep the contract and `LIMITS`."""
    group_id, prompt, answer = f"fuzz/{number}", int(rng.integers(1, 6)), int(rng.integers(1, 7))
    length = prompt + answer
    mask = np.arange(length) >= prompt
    return [
        Trajectory(
            trajectory_id=f"{group_id}/{sample}",
            group_id=group_id,
            group_size=2,
            prompt={"index": number},
            tokens=rng.integers(0, LIMITS.vocab_size, length).astype(np.int32),
            loss_mask=mask,
            behavior_logprobs=np.where(mask, -rng.random(length), 0).astype(np.float32),
            policy_version=np.where(mask, rng.integers(0, 9), NOT_SAMPLED).astype(np.int32),
            turn=np.zeros(length, np.int32),
            rewards=np.zeros(length, np.float32),
            reward_parts={"correct": 1.0},
            verdict="pass",
            finish_reason="stop",
            sampling={"temperature": 1.0},
            reward_version="fuzz 1",
            tokenizer="fuzz",
        )
        for sample in range(2)
    ]


def _array(name: str, dtype: str, change: Any) -> Mutation:
    def on_record(rng: Rng, record: dict[str, Any]) -> None:
        values = np.frombuffer(record[name], dtype).copy()
        record[name] = change(rng, values).tobytes()

    return one_record(on_record)


def _poked(value: float) -> Any:
    def change(rng: Rng, values: np.ndarray) -> np.ndarray:
        values[rng.integers(len(values))] = value
        return values

    return change


def _set(**fields: Any) -> Mutation:
    return one_record(lambda rng, record: record.update(fields))


def _ids(change: Callable[[str], str]) -> Mutation:
    """All ids of a group, consistently."""

    def mutation(rng: Rng, group: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [
            record | {"group_id": change(record["group_id"]), "trajectory_id": f"{change(record['group_id'])}/{sample}"}
            for sample, record in enumerate(group)
        ]

    return mutation


def _swapped_ids(rng: Rng, group: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [a | {"trajectory_id": b["trajectory_id"]} for a, b in zip(group, reversed(group), strict=True)]


def _many_fields(rng: Rng, record: dict[str, Any]) -> None:
    field = ("prompt", "sampling", "reward_parts")[rng.integers(3)]
    record[field] = {f"field {number}": 1.0 for number in range(1000)}


def _duplicate_ids(rng: Rng, group: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [dict(record, trajectory_id=group[0]["trajectory_id"]) for record in group]


def _huge(rng: Rng, group: list[dict[str, Any]]) -> list[dict[str, Any]]:
    sizes = {name: np.dtype(_DTYPES.get(name, "<f4")).itemsize for name in _ARRAYS}
    return [dict(record, **{name: bytes(_HUGE * size) for name, size in sizes.items()}) for record in group]


def _deep(rng: Rng, record: dict[str, Any]) -> None:
    nested: Any = None
    for _ in range(int(rng.integers(100, 900))):
        nested = {"a": nested}
    record["prompt"] = {"a": nested}


def _any_field(rng: Rng, group: list[dict[str, Any]]) -> list[dict[str, Any]]:
    place = int(rng.integers(len(group)))
    return [damaged_field(rng, record, non_finite=True) if i == place else record for i, record in enumerate(group)]


#: name of the damage -> what does it to the decoded records of one group; all of them break the contract
BREAKING: Mapping[str, Mutation] = MappingProxyType(
    {
        "one array shorter": _array("turn", "<i4", lambda rng, values: values[:-1]),
        "bytes that are no whole numbers": _array("tokens", "u1", lambda rng, values: values[:-1]),
        "float64 log-probs": _array("behavior_logprobs", "<f4", lambda rng, values: values.astype("<f8")),
        "int64 tokens": _array("tokens", "<i4", lambda rng, values: values.astype("<i8")),
        "NaN reward": _array("rewards", "<f4", _poked(np.nan)),
        "infinite reward": _array("rewards", "<f4", _poked(np.inf)),
        "NaN log-prob": _array("behavior_logprobs", "<f4", _poked(np.nan)),
        "positive log-prob at the end": _array(
            "behavior_logprobs", "<f4", lambda rng, values: np.append(values[:-1], np.float32(0.5))
        ),
        "log-prob of no sampler": _array("behavior_logprobs", "<f4", _poked(-3e38)),
        "rewards whose sum is infinite": _array("rewards", "<f4", lambda rng, values: np.full_like(values, 3e38)),
        "reward beyond its bound": _array("rewards", "<f4", _poked(2e6)),
        "NaN part": _set(reward_parts={"correct": float("nan")}),
        "part beyond its bound": _set(reward_parts={"correct": 1e300}),
        "limit of tokens that is text": _set(sampling={"max_tokens": "many"}),
        "limit of tokens that is true": _set(sampling={"max_tokens": True}),
        "temperature that is no number": _set(sampling={"temperature": float("nan")}),
        "negative temperature": _set(sampling={"temperature": -1.0}),
        "nested sampling": _set(sampling={"extra": {"a": 1}}),
        "nested prompt": _set(prompt={"index": [1]}),
        "prompt of another index": _set(prompt={"index": 10**12}),
        "index that no prompt has": _ids(lambda _: f"fuzz/{10**12}"),
        "negative index": _ids(lambda _: "fuzz/-1"),
        "index with leading zeros": _ids(lambda name: name.replace("/", "/0")),
        "run of another name": _ids(lambda name: name.replace("fuzz", "other")),
        "path for an id": _ids(lambda _: "fuzz/../../1"),
        "control characters in ids": _ids(lambda name: f"\x1b[2J\x00{name}"),
        "ids without end": _ids(lambda name: "f" * 100_000 + name),
        "samples of one another": _swapped_ids,
        "sample beyond the group": _set(trajectory_id="fuzz/1/99"),
        "another group's trajectory id": _set(trajectory_id="fuzz/999999/0"),
        "control characters in the verifier's name": _set(reward_version="\x1b]0;x\x07"),
        "fields without end": one_record(_many_fields),
        "group without end": _set(group_size=2**40),
        "lone surrogate": _set(reward_version=_SURROGATES),
        "token of another vocabulary": _array("tokens", "<i4", _poked(151_643)),
        "negative token": _array("tokens", "<i4", _poked(-3)),
        "other tokenizer": _set(tokenizer="another"),
        "no tokenizer": _set(tokenizer=""),
        "other schema": _set(schema=7),
        "schema of branches without any": _set(schema=4),
        "branches of an older schema": _set(branch_tokens=[2, 2]),
        "branches that begin no turn": _set(schema=4, branch_tokens=[2, 2]),
        "branches without end": _set(schema=4, branch_tokens=[2] * 100_000),
        "branch of negative length": _set(schema=4, branch_tokens=[-2, 6]),
        "older schema": one_record(lambda rng, record: [record.update(schema=2), record.pop("verdict")][0]),
        "nothing sampled": _array("loss_mask", "?", lambda rng, values: np.zeros_like(values)),
        "all sampled": _array("loss_mask", "?", lambda rng, values: np.ones_like(values)),
        "mask of other bytes": _array("loss_mask", "u1", lambda rng, values: values + 2),
        "no version": _array("policy_version", "<i4", lambda rng, values: np.full_like(values, -1)),
        "version on the prompt": _array("policy_version", "<i4", lambda rng, values: np.zeros_like(values)),
        "turns that go back": _array("turn", "<i4", lambda rng, values: np.append(values[:-1] + 1, np.int32(0))),
        "broken off": _set(finish_reason="abort"),
        "unknown finish reason": _set(finish_reason="tired"),
        "unknown source": _set(source="dream"),
        "unknown verdict": _set(verdict="maybe"),
        "failed verdict with a reward": _set(verdict="timeout"),
        "reason for a verdict that did not fail": _set(verdict_reason="why"),
        "reason without end": _set(verdict="error", reward_parts={}, verdict_reason="x" * 1000),
        "infinite part of the reward": _set(reward_parts={"correct": float("inf")}),
        "without consent": _set(consent=False),
        "one trajectory missing": lambda rng, group: group[:1],
        "one trajectory twice": lambda rng, group: [*group, group[0]],
        "no trajectory": lambda rng, group: [],
        "duplicate trajectory ids": _duplicate_ids,
        "another group's trajectory": _set(group_id="fuzz/other"),
        "wrong group size": _set(group_size=3),
        "huge arrays": _huge,
        "empty arrays": one_record(lambda rng, record: record.update(dict.fromkeys(_ARRAYS, b""))),
        "missing field": one_record(lambda rng, record: record.pop("turn")),
        "one field more": _set(colour="red"),
    }
)

#: damage that may leave a valid record; what is accepted is checked by `is_valid`
RANDOM: Mapping[str, Mutation] = MappingProxyType({"any field": _any_field, "nested deeply": one_record(_deep)})


def wire(group: Sequence[Trajectory]) -> list[dict[str, Any]]:
    """The records of a group as their msgpack decodes."""
    decoded: list[dict[str, Any]] = msgspec.msgpack.decode(encode_group(group))
    return decoded


def payload(rng: Rng, number: int, kind: str) -> bytes:
    """One damaged group as bytes; kind is a key of `BREAKING` or `RANDOM`, or "bytes"."""
    group = valid_group(rng, number)
    if kind == "bytes":
        return damaged_bytes(rng, encode_group(group))
    records = {**BREAKING, **RANDOM}[kind](rng, wire(group))
    return msgspec.msgpack.encode(records).replace(_SURROGATES.encode(), b"\xed\xa0\x80" * 3)


def refused(data: bytes, number: int) -> str | None:
    """Why the learner's side refuses the payload of group `number`; None if it takes it.

    Raises:
      AssertionError: it takes what `is_valid` doesn't hold for.
      Exception: anything but a `ContractError`: a crash.
    """
    try:
        group = decode_group(data)
        check_group(group, LIMITS)
    except ContractError as error:
        return str(error)
    if not is_valid(group):
        raise AssertionError(f"accepted, but not valid: {group}")
    return None if group[0].group_id == f"fuzz/{number}" else "another group"


def is_valid(group: Sequence[Trajectory]) -> bool:
    """Whether a group may be trained on, written once more and value by value in plain Python."""
    run, _, number = group[0].group_id.partition("/")
    if len(group) != LIMITS.group_size or run != "fuzz" or str(int(number)) != number or not 0 <= int(number) < 2**31:
        return False
    if [t.trajectory_id for t in group] != [f"fuzz/{number}/0", f"fuzz/{number}/1"]:
        return False
    for t in group:
        rows = list(
            zip(
                *(np.asarray(getattr(t, name)).tolist() for name in (*_DTYPES, "rewards")),
                strict=True,
            )
        )
        if not 0 < len(rows) <= LIMITS.max_length or not any(row[1] for row in rows) or rows[0][1]:
            return False
        if t.branch_tokens:  # no damage makes a record with branches that fit
            return False
        turns = [row[4] for row in rows]
        if turns != sorted(turns) or turns[0] < 0:
            return False
        for token, sampled, logprob, version, _, reward in rows:
            if not 0 <= token < LIMITS.vocab_size or not abs(reward) <= 1e6 or not abs(logprob) <= 1000:
                return False
            if sampled and (logprob > 1e-3 or version < 0):
                return False
            if not sampled and version != -1:
                return False
        if not sum(abs(row[5]) for row in rows) <= 1e6 or not all(abs(x) <= 1e6 for x in t.reward_parts.values()):
            return False
        if not 0 <= t.sampling.get("temperature", 1.0) <= 100 or not 1 <= t.sampling.get("max_tokens", 1) < 2**31:
            return False
        if not all(text.isprintable() and len(text) <= 256 for text in (t.reward_version, t.tokenizer)):
            return False
        if t.finish_reason not in ("stop", "length") or not t.consent or t.tokenizer != "fuzz":
            return False
        if t.group_id != group[0].group_id or t.group_size != len(group):
            return False
        if t.verdict not in ("pass", "fail") and (any(t.rewards.tolist()) or t.reward_parts):
            return False
    return True


def broken_object(rng: Rng, number: int) -> tuple[str, list[Trajectory]]:
    """A group as a producer in this process could build it by mistake: (what is wrong, group)."""
    group = valid_group(rng, number)
    first = group[0]
    length = len(first.tokens)
    changes: dict[str, dict[str, Any]] = {
        "tokens int64": {"tokens": first.tokens.astype(np.int64)},
        "tokens of two dimensions": {"tokens": first.tokens[None]},
        "log-probs float64": {"behavior_logprobs": first.behavior_logprobs.astype(np.float64)},
        "rewards too long": {"rewards": np.zeros(length + 1, np.float32)},
        "object array": {"turn": np.array([None] * length)},
        "mask as integers": {"loss_mask": first.loss_mask.astype(np.int32)},
        "text for tokens": {"tokens": np.array(["a"] * length)},
        "NaN": {"rewards": np.full(length, np.nan, np.float32)},
        "empty": {name: np.zeros(0, getattr(first, name).dtype) for name in _ARRAYS},
        "group of nobody": {"group_size": 0},
    }
    name = list(changes)[rng.integers(len(changes))]
    return name, [replace(first, **changes[name]), *group[1:]]
