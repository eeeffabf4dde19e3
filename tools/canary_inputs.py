"""What `tools.canary` reads: observations from a file, and stored decisions that are computed again."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import msgspec

from learner_jax.contracts import quoted
from serving_bridge.canary import CanaryError, Decided, Observation, ObservationLog, Rollout, State, decide

_BATCH = 1000
_MAX_LINE = 2**16


class _Line(msgspec.Struct, forbid_unknown_fields=True):
    """A line of the file."""

    kind: Literal["answer", "score", "feedback"]
    arm: str
    version: int
    tenant: str
    conversation: str
    measures: dict[str, float]
    shadow: bool = False
    at_s: float | None = None


def add_observations(log: ObservationLog, namespace: str, file: Path) -> int:
    """Adds the observations of a JSONL file, and returns how many there were.

    Raises:
      CanaryError: a line is none; those before it in whole batches of 1,000 were added.
    """
    number, batch = 0, []
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            batch.append(_observation(namespace, line, f"{file}, line {number}"))
            if len(batch) == _BATCH:
                log.add(batch)
                batch = []
    log.add(batch)
    return number


def _observation(namespace: str, line: bytes, where: str) -> Observation:
    if len(line) > _MAX_LINE:
        raise CanaryError(f"{where} has {len(line)} bytes, expected at most {_MAX_LINE}")
    try:
        found = msgspec.json.decode(line, type=_Line)
        return Observation(
            namespace,
            found.kind,
            found.arm,
            found.version,
            found.tenant,
            found.conversation,
            found.measures,
            found.shadow,
            time.time() if found.at_s is None else found.at_s,
        )
    except (msgspec.MsgspecError, CanaryError, UnicodeDecodeError) as error:
        raise CanaryError(f"{where}: {quoted(str(error), 300)}") from None


def replay(rollout: Rollout, decisions: Sequence[Decided]) -> list[str]:
    """Where the decisions of a rollout come out in another way than they were stored; nothing if they all agree."""
    state, differences = State(until=rollout.first), list[str]()
    for number, decided in enumerate(decisions, 1):
        if decided.look != number:
            return [*differences, f"decision {number} is missing: the next one is {decided.look}"]
        state, decision = decide(rollout.policy, state, decided.record.look)
        stored = decided.record.decision
        if decision != stored:
            differences.append(
                f"decision {number} comes out as {decision.verdict} ({'; '.join(decision.reasons)}), stored is "
                f"{stored.verdict} ({'; '.join(stored.reasons)})"
            )
    if not differences and state != rollout.state:
        differences.append("the state after the last decision is another one than the stored")
    return differences
