"""Which replica answers: the one that holds the conversation's prefix, unless it is much busier than the others.

The prefix's replica is found by rendezvous hashing of the conversation over the ready replicas (Thaler and
Ravishankar, "A Name-Based Mapping Scheme for Rendezvous", 1996), so that all processes of the gateway agree without
sharing anything. Load is what the replica itself last said that it has, corrected by what this process has sent and
got back since. Requests don't wait here: a replica's own queue goes by priority.

A replica that fails requests in a row is left alone, for a time that doubles; then one request tries it. That is this
process's own judgement, beside the states that the fleet's controller writes; the controller is told the counts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass

from xxhash import xxh64_intdigest

from serving_bridge.access import Keys
from serving_bridge.gateway.arms import Rank
from serving_bridge.gateway.errors import unavailable
from serving_bridge.routing import ReplicaRow
from serving_bridge.vllm import DEFERRED, USERS_KV_USAGE

_FAILURES_TO_AVOID = 3
_FIRST_AVOIDED_S, _MAX_AVOIDED_S = 1.0, 60.0
#: how much busier than the mean a conversation's own replica may be: a share, and some answers
_IMBALANCE = 0.25
_SLACK = 4


@dataclass(frozen=True)
class Load:
    """What a replica said of itself.

    Attributes:
      requests: running and waiting.
      waiting: those of them that wait for room; training's that wait for users to be gone are none of them.
      kv_usage: share of the KV cache that users hold, 0 to 1.
      queued_s: time that all requests since its start waited, together.
      begun: requests since its start that waited no longer.
    """

    requests: float
    waiting: float
    kv_usage: float
    queued_s: float = 0.0
    begun: float = 0.0

    @staticmethod
    def of_metrics(found: Mapping[str, float]) -> Load:
        """From vLLM's metrics by name."""
        waiting = found.get("vllm:num_requests_waiting", 0.0)
        return Load(
            requests=found.get("vllm:num_requests_running", 0.0) + waiting,
            waiting=waiting - found.get(DEFERRED, 0.0),
            kv_usage=found.get(USERS_KV_USAGE, found.get("vllm:kv_cache_usage_perc", 0.0)),
            queued_s=found.get("vllm:request_queue_time_seconds_sum", 0.0),
            begun=found.get("vllm:request_queue_time_seconds_count", 0.0),
        )


@dataclass(frozen=True)
class Pressure:
    """How full the replicas are together.

    Attributes:
      kv_usage: mean share of the KV caches that users hold.
      queue_s: mean time that requests wait there.
    """

    kv_usage: float
    queue_s: float


@dataclass(eq=False)
class Target:
    """A replica as this process knows it.

    Attributes:
      token: of this start of its server.
      key: its name, as it is hashed.
      version: policy version that it serves, as its row says.
      in_flight: this process's answers on it.
      failures: in a row.
      avoided_until_s, avoided_s: until when it is avoided, and for how long it was last.
      load: as of the last look; None before the first.
      at_look: `in_flight` at that look, `looked_s` its time.
      queue_s: time that requests waited on it lately, on average.
    """

    row: ReplicaRow
    token: str
    key: bytes = b""
    in_flight: int = 0
    failures: int = 0
    avoided_until_s: float = float("-inf")
    avoided_s: float = 0.0
    is_tried: bool = False
    load: Load | None = None
    at_look: int = 0
    looked_s: float = 0.0
    queue_s: float = 0.0

    @property
    def name(self) -> str:
        return self.row.name

    @property
    def url(self) -> str:
        return self.row.url

    @property
    def version(self) -> int:
        return self.row.version

    @property
    def busy(self) -> float:
        """Answers that it probably has now, of all who ask it."""
        if self.load is None:
            return self.in_flight
        return max(self.in_flight, self.load.requests + self.in_flight - self.at_look)


class Replicas:
    """The ready replicas. Used from one event loop; looks at each of them for every request.

    Args:
      clock: monotonic seconds.
    """

    def __init__(self, keys: Keys, clock: Callable[[], float]) -> None:
        self._keys, self._clock = keys, clock
        self._targets: dict[str, Target] = {}
        self._totals: dict[str, tuple[int, int]] = {}

    @property
    def targets(self) -> Sequence[Target]:
        return list(self._targets.values())

    def totals(self) -> Mapping[str, tuple[int, int]]:
        """Requests that (succeeded, failed) since the start, by replica."""
        return self._totals

    def update(self, rows: Sequence[ReplicaRow]) -> None:
        """Takes over which replicas take requests now. One that was started again begins anew.

        Raises:
          AccessError: the key of the replicas' tokens can't be read.
        """
        kept: dict[str, Target] = {}
        for row in rows:
            known = self._targets.get(row.name)
            if known is not None and (known.row.url, known.row.start) == (row.url, row.start):
                known.row = row
                kept[row.name] = known
            else:
                kept[row.name] = Target(row, self._keys.token("inference", row.url, row.start), row.name.encode())
        self._targets = kept

    def take(self, conversation: str, weight: int, avoid: Set[str] = frozenset(), rank: Rank = lambda row: 0) -> Target:
        """A replica for one request of `weight` answers; must be given back.

        Args:
          conversation: names what the request's prefix belongs to.
          avoid: replicas that failed this request already; taken again only where there is no other.
          rank: of the ones that may be taken, only those that fit best are.

        Raises:
          GatewayError: no replica is ready.
        """
        now_s = self._clock()
        groups: dict[tuple[bool, int], list[Target]] = {}
        for target in self._targets.values():
            fit = rank(target.row)
            if fit is not None and self._is_open(target, now_s):
                groups.setdefault((target.name in avoid, fit), []).append(target)
        if not groups:
            raise unavailable("no replica of the model is ready")
        target = _chosen(groups[min(groups)], conversation)
        target.in_flight += weight
        target.is_tried = target.failures >= _FAILURES_TO_AVOID
        return target

    def give_back(self, target: Target, weight: int, *, answered: bool = False, failed: bool = False) -> None:
        """Ends a request: answered, failed, or (neither) broken off by this side."""
        target.in_flight -= weight
        target.is_tried = False
        succeeded, lost = self._totals.get(target.name, (0, 0))
        if answered:
            target.failures, target.avoided_s = 0, 0.0
            self._totals[target.name] = (succeeded + 1, lost)
        elif failed:
            self._totals[target.name] = (succeeded, lost + 1)
            self._strike(target)

    def looked(self, target: Target, load: Load) -> None:
        """Takes over what a replica said of itself."""
        now_s, before = self._clock(), target.load
        if before is None or load.begun < before.begun:
            target.queue_s = 0.0
        elif load.begun > before.begun:
            target.queue_s = (load.queued_s - before.queued_s) / (load.begun - before.begun)
        else:  # nobody got on: those who wait have waited since
            target.queue_s = target.queue_s + now_s - target.looked_s if load.waiting else 0.0
        target.load, target.at_look, target.looked_s = load, target.in_flight, now_s

    def pressure(self) -> Pressure | None:
        """How full the replicas were at the last look; None before the first."""
        seen = [(target.load, target.queue_s) for target in self._targets.values() if target.load is not None]
        if not seen:
            return None
        kv_usage = sum(load.kv_usage for load, _ in seen) / len(seen)
        return Pressure(kv_usage, sum(queue_s for _, queue_s in seen) / len(seen))

    def _strike(self, target: Target) -> None:
        now_s = self._clock()
        if now_s < target.avoided_until_s:
            return  # sent before it was avoided: old news
        target.failures += 1
        if target.failures >= _FAILURES_TO_AVOID:
            target.avoided_s = min(_MAX_AVOIDED_S, max(_FIRST_AVOIDED_S, 2 * target.avoided_s))
            target.avoided_until_s = now_s + target.avoided_s

    def _is_open(self, target: Target, now_s: float) -> bool:
        """Whether it takes a request: it is not avoided; or was, and nobody tries yet whether it is well again."""
        return target.failures < _FAILURES_TO_AVOID or (now_s >= target.avoided_until_s and not target.is_tried)


def _chosen(usable: Sequence[Target], conversation: str) -> Target:
    if len(usable) == 1:
        return usable[0]
    seed = xxh64_intdigest(conversation.encode())
    own = max(usable, key=lambda target: xxh64_intdigest(target.key, seed))
    mean = sum(target.busy for target in usable) / len(usable)
    if own.busy <= (1 + _IMBALANCE) * mean + _SLACK:
        return own
    return min(usable, key=lambda target: target.busy)
