"""The records and protocols through which the learner meets the rest of Weir; free of JAX."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, Protocol

import msgspec
import numpy as np

from learner_jax.contracts.record_bounds import (
    MAX_PROMPT_INDEX,
    MAX_RECORD_TEXT,
    MAX_REWARD,
    MAX_STEP,
    MAX_VERSION,
    MIN_LOGPROB,
    check_integer,
    check_parts,
    prompt_index,
    quoted,
)
from learner_jax.contracts.trajectory import (
    MAX_REASON,
    MISSING_LOGPROB,
    NOT_SAMPLED,
    TRAJECTORY_SCHEMA,
    ContractError,
    FinishReason,
    RecordLimits,
    Source,
    Trajectory,
    Verdict,
    check_group,
    check_identity,
    decode_group,
    encode_group,
)
from learner_jax.runtime import PLAIN_NAME

__all__ = [
    "MANIFEST_SCHEMA",
    "MAX_MANIFEST_BYTES",
    "MAX_PROMPT_INDEX",
    "MAX_REASON",
    "MAX_RECORD_TEXT",
    "MAX_REWARD",
    "MAX_STEP",
    "MAX_VERSION",
    "MIN_LOGPROB",
    "MISSING_LOGPROB",
    "NOT_SAMPLED",
    "TRAJECTORY_SCHEMA",
    "ContractError",
    "FinishReason",
    "GoldenPrompt",
    "Lease",
    "LeaseReport",
    "Payloads",
    "RecordLimits",
    "Source",
    "TensorChange",
    "TensorEntry",
    "Trajectory",
    "TrajectorySource",
    "Verdict",
    "WeightFile",
    "WeightManifest",
    "WeightPublisher",
    "check_group",
    "check_identity",
    "check_integer",
    "check_parts",
    "decode_group",
    "decode_manifest",
    "encode_group",
    "encode_manifest",
    "prompt_index",
    "quoted",
]

MANIFEST_SCHEMA = 2


#: A larger manifest is none: thousands of tensors take some megabytes.
MAX_MANIFEST_BYTES = 2**27
_MAX_BYTES = 2**50
_Version = Annotated[int, msgspec.Meta(ge=1, le=MAX_VERSION)]
_OlderVersion = Annotated[int, msgspec.Meta(ge=0, le=MAX_VERSION)]
_Size = Annotated[int, msgspec.Meta(ge=0, le=_MAX_BYTES)]
_Step = Annotated[int, msgspec.Meta(ge=0, le=MAX_STEP)]
_FileName = Annotated[str, msgspec.Meta(pattern=rf"\A{PLAIN_NAME.pattern}\Z")]
_Sha256 = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]
_Xxh3 = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{32}\Z")]
_TensorName = Annotated[str, msgspec.Meta(pattern=r"\A[\x21-\x7e]{1,512}\Z")]
_Text = Annotated[str, msgspec.Meta(pattern=r"\A[^\x00-\x1f\x7f-\x9f]{0,256}\Z")]
_Shape = Annotated[list[Annotated[int, msgspec.Meta(ge=0, le=2**40)]], msgspec.Meta(max_length=8)]
_Tokens = Annotated[list[Annotated[int, msgspec.Meta(ge=0, lt=2**31)]], msgspec.Meta(max_length=2**20)]
_Logprobs = Annotated[list[Annotated[float, msgspec.Meta(ge=-1e30, le=1.0)]], msgspec.Meta(max_length=2**20)]


class GoldenPrompt(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Token ids and the learner's own log-probs for them, by which a replica proves that it computes the same.

    Attributes:
      tokens: T token ids.
      logprobs: T-1 values, nats, unprocessed (temperature 1): entry t is log p(tokens[t+1] | tokens[:t+1]).
    """

    tokens: _Tokens
    logprobs: _Logprobs


class WeightFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file of a version, by its plain name in the version's folder."""

    name: _FileName
    num_bytes: _Size
    sha256: _Sha256


class TensorEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One tensor of a version.

    Attributes:
      dtype: by numpy's name.
      xxh3_128: of the whole tensor's bytes in row-major order, hexadecimal, whatever form the version is stored in.
    """

    name: _TensorName
    shape: _Shape
    dtype: Literal["float32", "bfloat16", "float16"]
    xxh3_128: _Xxh3


class WeightManifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one policy version is made of. Written last: weights without a manifest do not exist.

    Produced by the weight publisher, consumed by the fleet controller and the vLLM plugin.

    Attributes:
      version: the policy version; only goes up, never reused.
      base_version: version that a sparse update applies to; None for a full one.
      step: optimizer steps behind these weights.
      parent: version published before this one, None for the first.
      content_sha256: over the tensors' names, shapes, dtypes and hashes: the same for the same weights in any form.
      num_changed: elements that a sparse update changes; None for a full version.
      tensors: all of the model's, also those that an update leaves alone; a sparse update's streams go in this order.
      golden: prompts with the learner's log-probs, computed with these very weights.
    """

    schema: int
    version: _Version
    base_version: _OlderVersion | None
    format: Literal["full", "sparse"]
    step: _Step
    parent: _OlderVersion | None
    run: _Text
    content_sha256: _Sha256
    num_changed: _Size | None
    files: list[WeightFile]
    tensors: list[TensorEntry]
    golden: list[GoldenPrompt]

    @property
    def num_bytes(self) -> int:
        """Size of the files."""
        return sum(file.num_bytes for file in self.files)


def encode_manifest(manifest: WeightManifest) -> bytes:
    return msgspec.json.format(msgspec.json.encode(manifest), indent=1)


def manifest_sha256(manifest: WeightManifest) -> str:
    """Names all that a manifest says, the sha256 of its files among it (hexadecimal)."""
    return hashlib.sha256(encode_manifest(manifest)).hexdigest()


class _Versioned(msgspec.Struct):
    schema: int


def decode_manifest(payload: bytes) -> WeightManifest:
    """Inverse of `encode_manifest`. Raises `ContractError` on another schema or a damaged file."""
    try:
        schema = msgspec.json.decode(payload, type=_Versioned).schema
        if schema != MANIFEST_SCHEMA:
            raise ContractError(f"weight manifest schema {schema}, this build reads {MANIFEST_SCHEMA}")
        manifest = msgspec.json.decode(payload, type=WeightManifest)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ContractError(f"not a weight manifest: {quoted(str(error))}") from error
    _check_consistent(manifest)
    return manifest


def _check_consistent(manifest: WeightManifest) -> None:
    is_update = manifest.format == "sparse"
    if is_update == (manifest.base_version is None) or is_update == (manifest.num_changed is None):
        raise ContractError(
            f"not a weight manifest: version {manifest.version} is {manifest.format}, with base version "
            f"{manifest.base_version} and {manifest.num_changed} changed elements"
        )
    names = {entry.name for entry in manifest.tensors}
    if len(names) != len(manifest.tensors) or len({file.name for file in manifest.files}) != len(manifest.files):
        raise ContractError(f"not a weight manifest: version {manifest.version} lists a tensor or a file twice")
    if (elements := sum(math.prod(entry.shape) for entry in manifest.tensors)) > _MAX_BYTES:
        raise ContractError(f"not a weight manifest: version {manifest.version} has {elements} elements")
    for prompt in manifest.golden:
        if len(prompt.logprobs) != max(0, len(prompt.tokens) - 1):
            raise ContractError(
                f"not a weight manifest: a golden prompt of {len(prompt.tokens)} tokens has {len(prompt.logprobs)} "
                f"log-probs, expected {len(prompt.tokens) - 1}"
            )


@dataclass(frozen=True)
class LeaseReport:
    """Groups handed to the learner, and how many were dropped as too stale on the way."""

    groups: list[list[Trajectory]]
    num_dropped_stale: int


@dataclass(frozen=True)
class Lease:
    """Groups handed to a learner of several hosts by name: each host reads the payloads of its share.

    Attributes:
      num_bytes: size of each group's payload.
    """

    group_ids: list[str]
    num_bytes: list[int]
    num_dropped_stale: int


@dataclass(frozen=True)
class Payloads:
    """What groups hold, by group id; and why others can't be read."""

    groups: dict[str, list[Trajectory]]
    unreadable: dict[str, str]


class TrajectorySource(Protocol):
    """Where the learner takes groups from; implemented by the bridge's queue.

    A learner of several hosts changes it on one host alone; the others only `read`.
    """

    def lease_groups(self, count: int, *, trained_version: int, max_staleness: int) -> LeaseReport:
        """Leases up to `count` complete groups, oldest first; drops groups beyond the staleness bound."""

    def lease(self, count: int, *, trained_version: int, max_staleness: int) -> Lease:
        """As `lease_groups`, without reading what the groups hold."""

    def read(self, group_ids: Sequence[str]) -> Payloads:
        """What leased groups hold; changes nothing."""

    def bury(self, group_id: str, reason: str) -> None:
        """Makes a leased group that can't be read a dead letter."""

    def mark_trained(self, group_ids: Sequence[str], *, completed_steps: int, trained_version: int) -> None:
        """Records, in one transaction, that an optimizer step consumed these groups and made this version."""

    def acknowledge(self, group_ids: Sequence[str]) -> None:
        """Forgets groups whose consumption is committed in a checkpoint."""

    def take_over(self) -> int:
        """Becomes the learner, before the checkpoint to go on from is chosen; an earlier one is refused from now on.

        Returns the number of its turn, which is larger than those before.
        """

    def recover(self, consumed_group_ids: Sequence[str], *, completed_steps: int, prompt_cursor: int) -> None:
        """After a (re)start: acknowledges groups that the checkpoint holds, returns every other leased one."""

    def prompt_cursor(self) -> int:
        """Index of the next prompt that was never dispatched."""

    def finish(self) -> None:
        """Tells the producers that nothing more is needed."""


@dataclass(frozen=True)
class TensorChange:
    """The elements of one tensor that differ from those of an earlier version.

    Attributes:
      name: HF name.
      indices: int64[K], ascending positions in the flattened tensor.
      values: [K], the new values there, in the published dtype.
    """

    name: str
    indices: np.ndarray
    values: np.ndarray


class WeightPublisher(Protocol):
    """Where the learner puts new weights; implemented by the bridge's publisher."""

    def claim(self) -> int:
        """Takes the next policy version; one that is never published stays taken and never exists."""

    def base(self) -> int | None:
        """The version that `publish_changes` would take as base; None if the next version must be a full one."""

    def publish(
        self,
        tensors: Iterable[tuple[str, np.ndarray]],
        *,
        step: int,
        golden: Sequence[GoldenPrompt],
        version: int | None = None,
    ) -> WeightManifest:
        """Stores a model's tensors under HF names as a policy version, a claimed or a new one."""

    def publish_changes(
        self,
        changes: Iterable[TensorChange],
        *,
        base: int,
        step: int,
        golden: Sequence[GoldenPrompt],
        version: int | None = None,
    ) -> WeightManifest:
        """As `publish`, given only what differs from version `base`; tensors without a change may be left out."""
