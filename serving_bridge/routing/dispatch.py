"""Which replica takes a request: the least loaded one, unless another holds its prefix and is hardly busier.

Load is the share of a replica's limit that is in flight, and limits follow the replica's own metrics (`concurrency`).
A replica may go over its limit by one request's answers, so that the least loaded one takes a request if any does.
Keeping a request at the replica of its prefix within a bounded imbalance is consistent hashing with bounded loads
(Mirrokni, Thorup and Zadimoghaddam, 2016) without the hashing: the caller remembers where its prefix is.

A replica that fails requests in a row is left alone for a while that doubles with every further failure. That is this
worker's own judgement, beside the health that the fleet's controller sees; the controller is told the numbers.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from learner_jax.runtime import StandingWait, Waits, WaitTimeoutError
from serving_bridge.routing.concurrency import Limit, Load, adjusted, cut
from serving_bridge.routing.registry import ReplicaRow
from serving_bridge.settings import RolloutSettings
from serving_bridge.vllm import Aborted, Full, Rejected, ReplicaError, VllmClient

_POLL_S = 1.0
_POLL_TIMEOUT_S = 5.0
#: how much busier than its part a replica may be for the sake of a prefix: a share, and some answers
_IMBALANCE = 0.05
_SLACK = 4
_FIRST_AVOIDED_S = 1.0
_MAX_AVOIDED_S = 60.0


class NoReplicaError(WaitTimeoutError):
    """No replica took requests within the bound."""


@dataclass(eq=False)
class Target:
    """A replica as this worker knows it.

    Attributes:
      start: of its server, as its row names it.
      in_flight: this worker's answers on it.
      failures: of requests, in a row.
      avoided_s: how long it was avoided last.
      tripped_s: loop time since when it is, or was last, avoided.
      cut_s: loop time at which it last said that it is full.
      is_open: whether it takes requests (is known and not avoided).
    """

    name: str
    url: str
    client: VllmClient
    limit: Limit
    start: str = ""
    in_flight: int = 0
    failures: int = 0
    avoided_s: float = 0.0
    tripped_s: float = float("-inf")
    cut_s: float = float("-inf")
    is_open: bool = False
    load: Load | None = None
    stamp: int = -1


class Slot(NamedTuple):
    """Leave to send one request of so many answers to a replica."""

    target: Target
    weight: int
    taken_s: float


@dataclass(eq=False)
class _Waiter:
    weight: int
    prefer: str
    granted: asyncio.Future[Slot] = field(repr=False)


class Dispatcher:
    """The replicas of one worker. Used from one event loop.

    Args:
      make_client: the client for a replica's row.
    """

    def __init__(
        self, settings: RolloutSettings, make_client: Callable[[ReplicaRow], VllmClient], waits: Waits
    ) -> None:
        self._settings = settings
        self._make_client = make_client
        self._targets: dict[str, Target] = {}
        self._totals: dict[str, tuple[int, int]] = {}
        self._heap: list[tuple[float, int, Target]] = []
        self._stamps = itertools.count()
        self._waiting: deque[_Waiter] = deque()
        self._in_flight = self._open_limit = 0
        self._cuts = 0
        self._line = StandingWait(
            waits,
            "a replica that takes requests",
            on="fleet",
            limit_s=settings.max_wait_s,
            setting="rollout.max_wait_s",
            error=NoReplicaError,
        )

    @property
    def num_waiting(self) -> int:
        """Requests that wait for a replica with room."""
        return len(self._waiting)

    def take_cuts(self) -> int:
        """How often a limit was cut since the last call."""
        cuts, self._cuts = self._cuts, 0
        return cuts

    def loads(self) -> dict[str, tuple[int, int]]:
        """(answers in flight, limit) of each replica."""
        return {target.name: (target.in_flight, target.limit.value) for target in self._targets.values()}

    def totals(self) -> Mapping[str, tuple[int, int]]:
        """Requests that (succeeded, failed) since the start, by replica; aborted and wrong ones are neither."""
        return self._totals

    def client(self, row: ReplicaRow) -> VllmClient:
        """The client of a known replica."""
        return self._targets[row.name].client

    def update(self, rows: Sequence[ReplicaRow]) -> None:
        """Takes over which replicas take requests now. One that was started again begins anew."""
        wanted = {row.name: row for row in rows}
        for target in list(self._targets.values()):
            row = wanted.get(target.name)
            if row is None or (row.url, row.start) != (target.url, target.start):
                self._close(target)
                del self._targets[target.name]
        for name, row in wanted.items():
            if name not in self._targets:
                limit = Limit(self._settings.min_concurrency)
                self._targets[name] = Target(name, row.url, self._make_client(row), limit, start=row.start)
                self._open(self._targets[name])

    async def take(self, weight: int, prefer: str = "") -> Slot:
        """Leave for one request of `weight` answers; waits, first come first served, while every replica is full.

        Args:
          prefer: name of the replica that holds the request's prefix.

        Raises:
          NoReplicaError: nobody in the line got a replica for `rollout.max_wait_s`.
        """
        if not self._waiting and (target := self._choose(prefer)) is not None:
            return self._grant(target, weight)
        waiter = _Waiter(weight, prefer, asyncio.get_running_loop().create_future())
        self._waiting.append(waiter)
        try:
            while not waiter.granted.done():
                self._line.look(True, self._describe)
                await asyncio.wait([waiter.granted], timeout=self._line.remaining_s)
            return waiter.granted.result()
        except BaseException:
            if waiter.granted.done():
                self.give_back(waiter.granted.result())
            else:
                self._waiting.remove(waiter)
            raise
        finally:
            if not self._waiting:
                self._line.end()

    def give_back(self, slot: Slot, error: ReplicaError | None = None, *, answered: bool = False) -> None:
        """Ends a request: `answered`, failed with `error`, or (neither) broken off by ourselves."""
        target = slot.target
        target.in_flight -= slot.weight
        self._in_flight -= slot.weight
        succeeded, failed = self._totals.get(target.name, (0, 0))
        if answered:
            target.failures, target.avoided_s = 0, 0.0
            self._totals[target.name] = (succeeded + 1, failed)
        elif isinstance(error, Full):
            self._is_full(target, slot.taken_s)
        elif error is not None and not isinstance(error, Rejected):
            if not isinstance(error, Aborted):
                self._totals[target.name] = (succeeded, failed + 1)
            self._strike(target, slot.taken_s)
        self._changed(target)
        self._wake()

    async def watch(self) -> None:
        """Follows the replicas' metrics about once a second until cancelled; one that gives none keeps its limit."""
        while True:
            async with asyncio.TaskGroup() as polls:
                for target in list(self._targets.values()):
                    polls.create_task(self._poll(target))
            await asyncio.sleep(_POLL_S)

    async def _poll(self, target: Target) -> None:
        try:
            metrics = await target.client.metrics(timeout_s=_POLL_TIMEOUT_S)
            load = Load(
                running=metrics["vllm:num_requests_running"],
                waiting=metrics["vllm:num_requests_waiting"],
                kv_usage=metrics["vllm:kv_cache_usage_perc"],
                preemptions=metrics["vllm:num_preemptions_total"],
            )
        except (ReplicaError, KeyError):  # a metric that does not come is no idle server
            target.load = None  # what happened in between is not known
            return
        before, target.load = target.load, load
        limit, was_cut = adjusted(
            target.limit,
            before,
            load,
            in_flight=target.in_flight,
            at_least=self._settings.min_concurrency,
            at_most=self._settings.max_concurrency,
        )
        self._cuts += was_cut
        if limit != target.limit:
            self._set_limit(target, limit)
            self._changed(target)
            self._wake()

    def _set_limit(self, target: Target, limit: Limit) -> None:
        self._open_limit += (limit.value - target.limit.value) if target.is_open else 0
        target.limit = limit

    def _is_full(self, target: Target, taken_s: float) -> None:
        """Cuts the limit of a replica, which is well; once for all that was sent before it said so."""
        if taken_s > target.cut_s:
            target.cut_s = asyncio.get_running_loop().time()
            self._set_limit(target, cut(target.limit, at_least=self._settings.min_concurrency))
            self._cuts += 1

    def _strike(self, target: Target, taken_s: float) -> None:
        """Counts a failure. Those of requests that were sent before it was last avoided are old news."""
        if taken_s <= target.tripped_s:
            return
        target.failures += 1
        if target.failures < self._settings.failures_to_avoid or not target.is_open:
            return
        loop = asyncio.get_running_loop()
        target.tripped_s = loop.time()
        target.avoided_s = min(_MAX_AVOIDED_S, max(_FIRST_AVOIDED_S, 2 * target.avoided_s))
        self._close(target)
        target.limit = Limit(self._settings.min_concurrency)  # when it comes back it has to prove itself
        loop.call_later(target.avoided_s, self._try_again, target)

    def _try_again(self, target: Target) -> None:
        if self._targets.get(target.name) is target:
            self._open(target)

    def _open(self, target: Target) -> None:
        target.is_open = True
        self._open_limit += target.limit.value
        self._changed(target)
        self._wake()

    def _close(self, target: Target) -> None:
        if target.is_open:
            target.is_open = False
            self._open_limit -= target.limit.value

    def _changed(self, target: Target) -> None:
        """Puts the target where it now belongs; its older entries are skipped when they come up."""
        target.stamp = next(self._stamps)
        if target.is_open:
            heapq.heappush(self._heap, (target.in_flight / target.limit.value, target.stamp, target))
        if len(self._heap) > 64 + 4 * len(self._targets):
            self._heap = [entry for entry in self._heap if entry[1] == entry[2].stamp and entry[2].is_open]
            heapq.heapify(self._heap)

    def _choose(self, prefer: str) -> Target | None:
        if (target := self._targets.get(prefer)) is not None and _takes(target):
            part = self._in_flight * target.limit.value / self._open_limit
            if target.in_flight <= (1 + _IMBALANCE) * part + _SLACK:
                return target
        while self._heap and (self._heap[0][1] != self._heap[0][2].stamp or not self._heap[0][2].is_open):
            heapq.heappop(self._heap)
        return self._heap[0][2] if self._heap and _takes(self._heap[0][2]) else None

    def _grant(self, target: Target, weight: int) -> Slot:
        target.in_flight += weight
        self._in_flight += weight
        self._changed(target)
        self._line.progressed()
        return Slot(target, weight, asyncio.get_running_loop().time())

    def _wake(self) -> None:
        while self._waiting and (target := self._choose(self._waiting[0].prefer)) is not None:
            waiter = self._waiting.popleft()
            waiter.granted.set_result(self._grant(target, waiter.weight))

    def _describe(self) -> str:
        states = [
            f"{t.name} has {t.in_flight} of {t.limit.value} in flight, {t.failures} failures in a row"
            for t in self._targets.values()
        ]
        return f"{len(self._waiting)} requests wait; {'; '.join(states) or 'no replica is ready'}"


def _takes(target: Target) -> bool:
    return target.is_open and target.in_flight < target.limit.value
