"""Takes note of what a gateway answered, off the request's path: measures are kept, texts are not."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Protocol

from learner_jax.runtime import Pattern
from serving_bridge.canary.errors import CanaryError
from serving_bridge.canary.observations import Observation, ObservationLog, OfArm
from serving_bridge.database import DatabaseError
from serving_bridge.text import REFUSALS

_BEGINNING = 200
#: Words of an answer that are looked at: the measures of a long one cost no more.
_MAX_WORDS = 1000
_CLIENT_LEFT = 0
_RETRY_S = 1.0


class Answered(OfArm, Protocol):
    """A request that an arm has answered, as gateways tell it."""

    @property
    def is_mixed(self) -> bool: ...
    @property
    def is_shadow(self) -> bool: ...
    @property
    def is_covered(self) -> bool: ...
    @property
    def status(self) -> int: ...
    @property
    def ttft_s(self) -> float | None: ...
    @property
    def seconds(self) -> float: ...
    @property
    def completion_tokens(self) -> int: ...
    @property
    def finishes(self) -> tuple[str, ...]: ...
    @property
    def guard(self) -> str: ...


def measures(seen: Answered, texts: Sequence[str], refusals: Sequence[Pattern]) -> dict[str, float]:
    """The metrics of one answered request; those that it does not have are left out.

    `error` is a status of 500 or more, a choice that did not end, or an answer or error that a fallback stood in for:
    what users were told then says nothing of the arm. A client that left says nothing. `distinct` is the
    share of different pairs of words among all pairs (distinct-2, arXiv 1510.03055), of answers of ten words or more.
    """
    if seen.status == _CLIENT_LEFT:
        return {}
    failed = seen.status >= 500 or "" in seen.finishes or seen.is_covered
    found = {"error": float(failed)}
    if failed:
        return found
    if seen.guard != "unwatched":
        found["guard"] = float(seen.guard == "cut")
    if seen.ttft_s is not None:
        found["ttft_s"] = seen.ttft_s
        if (sampling_s := seen.seconds - seen.ttft_s) > 0 and seen.completion_tokens > 1:
            found["tokens_per_s"] = (seen.completion_tokens - 1) / sampling_s
    if texts:
        beginnings = [text[:_BEGINNING] for text in texts]
        refused = [any(pattern.found_in(text) for pattern in refusals) for text in beginnings]
        found["refusal"] = sum(refused) / len(refused)
        found["length"] = seen.completion_tokens / len(texts)
        distinct = [share for text in texts if (share := distinct_pairs(text)) is not None]
        if distinct:
            found["distinct"] = sum(distinct) / len(distinct)
    return found


def distinct_pairs(text: str) -> float | None:
    """Share of different pairs of neighbouring words; None for a text of less than ten words."""
    words = text.lower().split(maxsplit=_MAX_WORDS)[:_MAX_WORDS]
    if len(words) < 10:
        return None
    pairs = list(pairwise(words))
    return len(set(pairs)) / len(pairs)


class Observer:
    """Writes observations in batches from a thread of its own. A full buffer drops, and counts what it dropped.

    Args:
      capacity: observations that wait at most.
      every_s: seconds between two batches.
      clock: seconds since the epoch.
    """

    def __init__(
        self,
        log: ObservationLog,
        namespace: str,
        *,
        capacity: int = 20_000,
        every_s: float = 1.0,
        refusals: Sequence[str] = REFUSALS,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._log, self._namespace, self._clock = log, namespace, clock
        self._capacity, self._every_s = capacity, every_s
        self._refusals = [Pattern(text, ignore_case=True, dot_all=True) for text in refusals]
        self._waiting: deque[Observation] = deque()
        self._dropped = 0
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="observations", daemon=True)

    def answered(self, seen: Answered, texts: Callable[[], Sequence[str]]) -> None:
        """Takes note of a request that ended; never waits for the database."""
        if seen.is_mixed or not seen.conversation:
            return
        found = measures(seen, texts(), self._refusals)
        if not found:
            return
        try:
            self.add(
                Observation(
                    namespace=self._namespace,
                    kind="answer",
                    arm=seen.arm,
                    version=seen.version,
                    tenant=seen.tenant,
                    conversation=seen.conversation,
                    measures=found,
                    shadow=seen.is_shadow,
                    at_s=self._clock(),
                )
            )
        except CanaryError:
            self._count_dropped(1)

    def add(self, observation: Observation) -> None:
        """Puts one among those to be written, or counts it as dropped."""
        with self._lock:
            if len(self._waiting) < self._capacity:
                self._waiting.append(observation)
                return
        self._count_dropped(1)

    def start(self) -> None:
        self._thread.start()

    def close(self, timeout_s: float = 5.0) -> None:
        """Writes what waits, as far as that is possible in time."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        self.flush()

    def flush(self) -> bool:
        """Writes what waits; what can't be written now goes on waiting. Returns whether all is written."""
        with self._lock:
            batch, dropped = list(self._waiting), self._dropped
            self._waiting.clear()
            self._dropped = 0
        if dropped:
            batch.append(
                Observation(
                    self._namespace, "dropped", "stable", -1, "", "", {"count": float(dropped)}, at_s=self._clock()
                )
            )
        try:
            self._log.add(batch)
        except DatabaseError:
            with self._lock:
                self._waiting.extendleft(reversed([one for one in batch if one.kind != "dropped"]))
                self._dropped += dropped
                while len(self._waiting) > self._capacity:
                    self._waiting.pop()
                    self._dropped += 1
            return False
        return True

    def _count_dropped(self, number: int) -> None:
        with self._lock:
            self._dropped += number

    def _run(self) -> None:
        while not self._stopped.wait(self._every_s if self.flush() else _RETRY_S):
            pass
