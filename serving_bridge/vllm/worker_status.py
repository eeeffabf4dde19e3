"""What a replica's workers say of their weights (the plugin's `weir_status`), as one status of the replica."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import msgspec

from learner_jax.contracts import MAX_RECORD_TEXT, MAX_VERSION, quoted
from serving_bridge.vllm.answers import Malformed

_Version = Annotated[int, msgspec.Meta(ge=0, le=MAX_VERSION)]
#: of staging, the least advanced first
_STATES = ("failed", "idle", "reading", "staged", "applied")


@dataclass(frozen=True)
class WorkerStatus:
    """The least advanced of a replica's workers.

    Attributes:
      state: "idle", "reading", "staged", "applied" (what was asked for is what they have already) or "failed".
      staged: version staged, None unless all workers staged the same.
      error: why staging failed.
      damaged: it failed for what the store holds: a whole copy of the version would help.
      applied: version loaded last, None before the first or if workers differ.
      intact: False if a load broke off halfway, or the workers hold different versions.
    """

    state: str
    staged: int | None
    error: str
    damaged: bool
    applied: int | None
    intact: bool


class WorkerReport(msgspec.Struct, frozen=True):
    """What one worker says; the attributes are those of `WorkerStatus`."""

    state: Literal["failed", "idle", "reading", "staged", "applied"]
    staged: _Version | None
    error: str
    damaged: bool
    applied: _Version | None
    intact: bool


class _Workers(msgspec.Struct):
    results: list[WorkerReport]


def worker_status(payload: bytes, base_url: str) -> WorkerStatus:
    """What a call of the plugin's workers answered, as one status. Raises `Malformed`."""
    try:
        workers = msgspec.json.decode(payload, type=_Workers).results
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise Malformed(f"{base_url} sent {payload[:200]!r} for its workers' status: {error}") from error
    if not workers:
        raise Malformed(f"{base_url} sent no status, expected one per worker")
    return merge(workers)


def merge(workers: Sequence[WorkerReport]) -> WorkerStatus:
    """One status of all workers of a replica; at least one."""
    # A worker that holds the version already, by a round that broke off, has nothing to stage.
    staged = {worker.staged for worker in workers if worker.state != "applied"} or {None}
    applied = {worker.applied for worker in workers}
    return WorkerStatus(
        state=min((worker.state for worker in workers), key=_STATES.index),
        staged=staged.pop() if len(staged) == 1 else None,
        error=quoted("; ".join(dict.fromkeys(worker.error for worker in workers if worker.error)), MAX_RECORD_TEXT),
        damaged=any(worker.damaged for worker in workers),
        applied=workers[0].applied if len(applied) == 1 else None,
        intact=len(applied) == 1 and all(worker.intact for worker in workers),
    )
