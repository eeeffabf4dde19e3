"""The trajectory: one sampled answer on its way from rollout worker to learner, as a record and as bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import msgspec
import numpy as np

from learner_jax.contracts.branches import check_branches, longest_sequence
from learner_jax.contracts.group_arrays import ARRAY_DTYPES, NOT_SAMPLED, ROUNDING, arrays_hold
from learner_jax.contracts.record_bounds import (
    MAX_REWARD,
    MIN_LOGPROB,
    ContractError,
    check_ids,
    check_parts,
    check_printable,
    check_prompt,
    check_sampling,
    quoted,
)

__all__ = [
    "MAX_REASON",
    "NOT_SAMPLED",
    "TRAJECTORY_SCHEMA",
    "ContractError",
    "FinishReason",
    "RecordLimits",
    "Source",
    "Trajectory",
    "Verdict",
    "check_group",
    "check_identity",
    "decode_group",
    "encode_group",
]

TRAJECTORY_SCHEMA = 3
#: of records with branches; the others stay readable for older builds
BRANCHED_SCHEMA = 4

#: Nothing nested, whose size in memory nobody would bound.
Scalar = str | bool | int | float | None
#: "stop": the policy ended its answer; "length": its limit did; "abort": generation was broken off.
FinishReason = Literal["stop", "length", "abort"]
Source = Literal["rollout", "online", "replay"]
#: "pass" and "fail" of an answer that was judged; else why it was not: the verifier passed its deadline, died, does not
#: judge such an answer, or failed in another way; or its reward comes later ("pending").
Verdict = Literal["pass", "fail", "timeout", "crashed", "refused", "error", "pending"]
_FINISH_REASONS, _SOURCES, _VERDICTS = get_args(FinishReason), get_args(Source), get_args(Verdict)
#: Characters of the reason for a verdict that failed; it may quote the model.
MAX_REASON = 200

#: What vLLM writes for a log-prob of minus infinity: one that is missing, since no sampled token has it.
MISSING_LOGPROB = -9999.0

#: Extremes of an array, without what the methods of that name look at first.
_lowest, _highest = np.minimum.reduce, np.maximum.reduce


@dataclass(frozen=True)
class Trajectory:
    """One sampled answer with everything needed to train on it.

    Produced by the rollout worker, consumed by the learner. Arrays share one length T.

    Attributes:
      trajectory_id: `{group_id}/{sample}`; deterministic, hence the idempotency key.
      group_id: the group of answers to one prompt; `{run}/{prompt index}`.
      tokens: int32[T], prompt followed by everything sampled, exactly as the sampler used them.
      loss_mask: bool[T], True on tokens that the policy sampled.
      behavior_logprobs: float32[T], nats, processed (after temperature) as the sampler used them;
        entry t is log p(tokens[t] | tokens[:t]); 0 where `loss_mask` is False.
      policy_version: int32[T], version that sampled each token, `NOT_SAMPLED` elsewhere.
      turn: int32[T], index of the dialog turn each token belongs to.
      rewards: float32[T], placed on the token at which each reward is earned; all 0, and without meaning, where the
        verdict failed.
      reward_parts: named components of the reward, for people and for metrics.
      verdict: of the answer, or of the last one of a dialog, which a failed verdict ends.
      prompt: where the prompt came from, e.g. {"index": ..., "question": ...}: texts and numbers.
      sampling: the sampling parameters sent, e.g. {"temperature": 1.0, "max_tokens": 8}: texts and numbers.
      reward_version: name and version of the verifier.
      tokenizer: fingerprint of the tokenizer behind the token ids; "" where it is not known.
      verdict_reason: why the verdict failed, at most `MAX_REASON` characters; "" for an answer that was judged.
      branch_tokens: lengths of the sequences that the arrays hold one after the other; () for one. See `branches`.
    """

    trajectory_id: str
    group_id: str
    group_size: int
    prompt: Mapping[str, Any]
    tokens: np.ndarray
    loss_mask: np.ndarray
    behavior_logprobs: np.ndarray
    policy_version: np.ndarray
    turn: np.ndarray
    rewards: np.ndarray
    reward_parts: Mapping[str, float]
    verdict: Verdict
    finish_reason: FinishReason
    sampling: Mapping[str, Any]
    reward_version: str
    source: Source = "rollout"
    consent: bool = True
    tokenizer: str = ""
    verdict_reason: str = ""
    branch_tokens: tuple[int, ...] = ()

    @property
    def is_judged(self) -> bool:
        """Whether the verifier gave a verdict, so that there is a reward."""
        return self.verdict in ("pass", "fail")

    @property
    def total_reward(self) -> float:
        """Sum of the rewards.

        Raises:
          ContractError: the answer was not judged, and nobody knows its reward.
        """
        if not self.is_judged:
            raise ContractError(f"{self.trajectory_id} has no reward: its verdict is {self.verdict}")
        return float(self.rewards.sum())

    @property
    def oldest_version(self) -> int:
        """The oldest policy version among the sampled tokens (the one staleness is counted from)."""
        # Taken for unsigned, `NOT_SAMPLED` is above every version.
        return int(_lowest(self.policy_version.view(np.uint32)))

    def validate(self) -> None:
        """Raises `ContractError` naming the first field that breaks the contract."""
        self._check_texts()
        length = len(self.tokens)
        for name, dtype in ARRAY_DTYPES.items():
            array = getattr(self, name)
            if array.shape != (length,):
                raise ContractError(f"{self.trajectory_id}: {name} has shape {array.shape}, expected ({length},)")
            if array.dtype != dtype:
                raise ContractError(f"{self.trajectory_id}: {name} has dtype {array.dtype}, expected {dtype}")
        # Every trajectory comes by here twice: reductions over whole arrays, and no copies of what a mask selects.
        mask = self.loss_mask
        highest = _highest(mask.view(np.uint8)) if length else 0
        if highest == 0:
            raise ContractError(f"{self.trajectory_id}: no token was sampled by the policy (loss_mask is all False)")
        if highest > 1:
            raise ContractError(f"{self.trajectory_id}: loss_mask holds bytes other than 0 and 1")
        if mask[0]:
            raise ContractError(f"{self.trajectory_id}: the first token has no context and can't have been sampled")
        # Off the mask too: losses multiply what they leave out by zero, and zero times NaN is NaN. Extremes of an array
        # with a NaN are NaN, which fails every comparison.
        if not (_lowest(self.behavior_logprobs) >= MIN_LOGPROB and _highest(self.behavior_logprobs) <= ROUNDING):
            raise ContractError(
                f"{self.trajectory_id}: behavior_logprobs must be <= 0 and at least {MIN_LOGPROB:g}; "
                f"{MISSING_LOGPROB:g} stands for a missing one"
            )
        self._check_rewards(length)
        has_version = self.policy_version >= 0
        if _lowest(self.policy_version) < NOT_SAMPLED or (has_version != mask).any():
            if (mask & ~has_version).any():
                raise ContractError(f"{self.trajectory_id}: a sampled token has no policy version")
            raise ContractError(
                f"{self.trajectory_id}: a token that no policy sampled has a policy version, expected {NOT_SAMPLED}"
            )
        if _lowest(self.tokens) < 0:
            raise ContractError(f"{self.trajectory_id}: token ids must be >= 0")
        if self.turn[0] < 0 or (self.turn[1:] < self.turn[:-1]).any():
            raise ContractError(f"{self.trajectory_id}: turn must start at 0 or above and never go down")
        check_branches(self)

    def _check_texts(self) -> None:
        """Everything that is no array."""
        index = check_ids(self.trajectory_id, self.group_id, self.group_size)
        name = self.trajectory_id
        check_prompt(f"{name}: prompt", self.prompt, index)
        check_sampling(f"{name}: sampling", self.sampling)
        check_parts(f"{name}: reward_parts", self.reward_parts)
        check_printable(f"{name}: reward_version", self.reward_version)
        check_printable(f"{name}: tokenizer", self.tokenizer)
        if self.finish_reason not in _FINISH_REASONS:
            raise ContractError(
                f"{name}: finish_reason is {_repr(self.finish_reason)}, expected one of {', '.join(_FINISH_REASONS)}"
            )
        self._check_verdict(name)
        if self.source not in _SOURCES:
            raise ContractError(f"{name}: source is {_repr(self.source)}, expected one of {', '.join(_SOURCES)}")
        if type(self.consent) is not bool:
            raise ContractError(f"{name}: consent is {_repr(self.consent)}, expected true or false")

    def _check_rewards(self, length: int) -> None:
        lowest, highest = float(_lowest(self.rewards)), float(_highest(self.rewards))
        if not (-np.inf < lowest and highest < np.inf):
            raise ContractError(f"{self.trajectory_id}: rewards must be finite")
        if not self.is_judged and (lowest or highest):
            raise ContractError(f"{self.trajectory_id}: rewards, although its verdict is {self.verdict}")
        # The sum is looked at only where it could be too large.
        if max(-lowest, highest) * length > MAX_REWARD:
            size = float(np.abs(self.rewards, dtype=np.float64).sum())
            if size > MAX_REWARD:
                raise ContractError(
                    f"{self.trajectory_id}: rewards add up to {size:.3g} without their signs, expected at most "
                    f"{MAX_REWARD:g}: scale them down"
                )

    def _check_verdict(self, name: str) -> None:
        if self.verdict not in _VERDICTS:
            raise ContractError(f"{name}: verdict is {_repr(self.verdict)}, expected one of {', '.join(_VERDICTS)}")
        check_printable(f"{name}: verdict_reason", self.verdict_reason, MAX_REASON)
        if self.is_judged and self.verdict_reason:
            raise ContractError(f"{name}: verdict_reason is for failed verdicts, not {self.verdict}")
        if not self.is_judged and self.reward_parts:
            raise ContractError(f"{name}: rewards, although its verdict is {self.verdict}")


@dataclass(frozen=True)
class RecordLimits:
    """What a run takes in; a group outside of it would break a batch, or train the policy on what is not its own.

    Attributes:
      vocab_size: token ids are below it.
      max_length: tokens of a trajectory (learner.sequence_length).
      group_size: trajectories of a group; 0 takes any number.
      tokenizer: fingerprint that trajectories must carry; "" takes any.
      run: that group ids must begin with; "" takes any.
    """

    vocab_size: int
    max_length: int
    group_size: int
    tokenizer: str = ""
    run: str = ""


def check_identity(group: Sequence[Trajectory]) -> None:
    """Raises `ContractError` unless the trajectories are all samples of one group, each once and in order.

    Ids are keys: what another group is called would be acknowledged untrained, and trained on once more.
    """
    if not group:
        raise ContractError("a group must hold at least one trajectory")
    first = group[0]
    if any(t.group_id != first.group_id or t.group_size != len(group) for t in group):
        raise ContractError(f"{quoted(first.group_id)}: trajectories disagree on group id or size ({len(group)} came)")
    for sample, trajectory in enumerate(group):
        if trajectory.trajectory_id != f"{first.group_id}/{sample}":
            raise ContractError(
                f"trajectory id {quoted(trajectory.trajectory_id, 80)} stands in place {sample} of group "
                f"{quoted(first.group_id, 80)}, expected <group id>/{sample}; or the group holds a trajectory id twice"
            )


def check_group(group: Sequence[Trajectory], limits: RecordLimits) -> None:
    """Raises `ContractError` naming the first limit that a group breaks; `Trajectory.validate` is not repeated."""
    if limits.run and group[0].group_id.rpartition("/")[0] != limits.run:
        raise ContractError(f"group {group[0].group_id} is of another run, expected {limits.run}/<prompt index>")
    if limits.group_size and len(group) != limits.group_size:
        raise ContractError(f"group {group[0].group_id} has {len(group)} trajectories, expected {limits.group_size}")
    if len({trajectory.trajectory_id for trajectory in group}) != len(group):
        raise ContractError(f"group {group[0].group_id} holds a trajectory id twice")
    for trajectory in group:
        name = trajectory.trajectory_id
        if (longest := longest_sequence(trajectory)) > limits.max_length:
            raise ContractError(f"{name}: {longest} tokens, expected at most {limits.max_length}")
        if (highest := int(trajectory.tokens.max())) >= limits.vocab_size:
            raise ContractError(f"{name}: token id {highest} is outside of the vocabulary of {limits.vocab_size}")
        if limits.tokenizer and trajectory.tokenizer != limits.tokenizer:
            raise ContractError(
                f"{name}: token ids are of tokenizer {trajectory.tokenizer or 'unknown'}, the learner's is "
                f"{limits.tokenizer}: start the rollout worker and the learner from the same model folder"
            )
        if trajectory.finish_reason == "abort":
            raise ContractError(f"{name}: the answer was broken off (finish_reason abort) and is no sample")
        if not trajectory.consent:
            raise ContractError(f"{name}: its user did not consent to training")


class _TrajectoryWire(msgspec.Struct, array_like=False, forbid_unknown_fields=True, omit_defaults=True):
    schema: int
    trajectory_id: str
    group_id: str
    group_size: int
    prompt: dict[str, Scalar]
    tokens: bytes
    loss_mask: bytes
    behavior_logprobs: bytes
    policy_version: bytes
    turn: bytes
    rewards: bytes
    reward_parts: dict[str, float]
    verdict: str
    finish_reason: str
    sampling: dict[str, Scalar]
    reward_version: str
    source: str
    consent: bool
    tokenizer: str
    verdict_reason: str
    branch_tokens: list[int] = []


class _AnySchema(msgspec.Struct):
    schema: int = -1


#: From so many answers on, looking at the arrays of all at once costs less than at those of one after the other.
_TOGETHER = 4

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(list[_TrajectoryWire])
_schema_decoder = msgspec.msgpack.Decoder(list[_AnySchema])


def encode_group(group: Sequence[Trajectory]) -> bytes:
    """Encodes the trajectories of one group as msgpack with raw little-endian arrays (schema 3, with branches 4).

    Raises:
      ContractError: a trajectory breaks the contract.
    """
    _validate(group)
    records = []
    for trajectory in group:
        fields = dict(vars(trajectory))
        for name, dtype in ARRAY_DTYPES.items():
            fields[name] = np.ascontiguousarray(fields[name], dtype).tobytes()
        fields["prompt"], fields["sampling"] = dict(fields["prompt"]), dict(fields["sampling"])
        fields["reward_parts"] = {key: float(value) for key, value in trajectory.reward_parts.items()}
        fields["branch_tokens"] = list(trajectory.branch_tokens)
        records.append(_TrajectoryWire(schema=_schema_of(trajectory), **fields))
    try:
        return _encoder.encode(records)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise ContractError(f"{quoted(group[0].trajectory_id)}: can't be written as a record: {error}") from error


def decode_group(payload: bytes) -> list[Trajectory]:
    """Inverse of `encode_group`.

    Raises:
      ContractError: the bytes are not a group of trajectories of a known schema, or break the contract.
    """
    try:
        wires = _decoder.decode(payload)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        _check_schema(payload)
        raise ContractError(f"not a group of trajectories: {quoted(str(error))}") from error
    group = []
    for wire in wires:
        if wire.schema != _schema_of(wire):
            raise _schema_error(wire.schema)
        fields = msgspec.structs.asdict(wire)
        del fields["schema"]
        fields["branch_tokens"] = tuple(wire.branch_tokens)
        for name, dtype in ARRAY_DTYPES.items():
            if len(fields[name]) % dtype.itemsize:
                raise ContractError(
                    f"{quoted(wire.trajectory_id)}: {name} has {len(fields[name])} bytes, not whole {dtype}"
                )
            fields[name] = np.frombuffer(fields[name], dtype)
        group.append(Trajectory(**fields))
    _validate(group)
    check_identity(group)
    return group


def _validate(group: Sequence[Trajectory]) -> None:
    """Raises `ContractError` for the first trajectory that breaks the contract."""
    together = len(group) >= _TOGETHER and arrays_hold(group)
    check = Trajectory._check_texts if together else Trajectory.validate
    for trajectory in group:
        check(trajectory)
        check_branches(trajectory)


def _check_schema(payload: bytes) -> None:
    """Raises if the bytes are trajectories of another schema, whatever fields that one has."""
    try:
        schemas = {wire.schema for wire in _schema_decoder.decode(payload)} - {TRAJECTORY_SCHEMA, BRANCHED_SCHEMA, -1}
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return
    if schemas:
        raise _schema_error(min(schemas))


def _schema_of(record: Trajectory | _TrajectoryWire) -> int:
    return BRANCHED_SCHEMA if record.branch_tokens else TRAJECTORY_SCHEMA


def _repr(value: object) -> str:
    return quoted(repr(value) if isinstance(value, str) else value, 80)


def _schema_error(schema: int) -> ContractError:
    old = "; it does not tell answers that were judged wrong from those that nobody judged" if schema < 3 else ""
    known = f"{TRAJECTORY_SCHEMA}{old} ({BRANCHED_SCHEMA} with branches)"
    return ContractError(f"trajectory schema {schema}, this build reads {known}")
