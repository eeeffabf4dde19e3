"""Observations that `tools.canary` reads from a file."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Literal

import msgspec

from learner_jax.contracts import quoted
from serving_bridge.canary import CanaryError, Observation, ObservationLog

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
