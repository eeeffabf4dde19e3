"""A gateway's slice of a tenant's limits, or of the deployment's: what it may admit without asking anybody.

Gateways lease *shares* of each scope from the database; the shares of one scope add up to at most 1. A smaller share is
used before it is written, a larger one after, so the sum holds at every moment. Units left in a bucket move with the
share that they belong to; nobody mints units but by holding a share while time passes.

The bound. Of a limit with rate r and burst b, in any window of T seconds, all gateways together charge at most

    (b + r T) (1 + C s) + P max(c b, m) + O

with C the times in the window that a gateway was cut off from the database for longer than the lease, s
`cut_off_share`, P the gateway processes that lived in the window, c `credit`, m the largest reservation, and O what was
reserved before the window and given back in it. A charge is an answer's usage, counted when it was admitted. Without
cut-offs the rate is exact: what is beyond b + r T is the credit on which a gateway begins before its first slice
arrives, and a request that is larger than the gateway's part of the burst. Clocks are monotonic, so a wall clock that
jumps changes nothing.

Of a concurrency N all gateways together run at most `N (1 + C s) + P max(c N, 1)` answers: one that holds no whole
place may still run one.

Not covered: machines that are suspended, whose monotonic clock stands still meanwhile.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from serving_bridge.tenants.buckets import Bucket, Places
from serving_bridge.tenants.records import Limits

_MINUTE_S = 60.0
#: A share that differs from what is due by less is left alone.
_SLACK = 0.01
#: How long a demand is remembered.
_MEMORY_S = 3.0


@dataclass(frozen=True)
class SlicePolicy:
    """How gateways share limits; the same in all gateways of a deployment.

    Attributes:
      credit: part of a burst that a gateway may spend before its first slice of it has come.
      cut_off_share: share that a gateway keeps while the database is away for longer than its lease.
      lease_s: a gateway that could not renew for so long is on its own; others take its shares after twice the time.
      idle_s: a slice that was not used for so long is given back.
    """

    credit: float = 0.125
    cut_off_share: float = 0.5
    lease_s: float = 10.0
    idle_s: float = 60.0


@dataclass(frozen=True)
class SliceOffer:
    """What a gateway says of a slice. Consumer: the exchange in the database.

    Attributes:
      share: that it uses from now on.
      requests, tokens: units that it gives up with the rest of what it had.
      demand: requests and tokens a second that it is asked for, as parts of the limits.
      request_burst, token_burst: of the whole limits, 0 for none.
      leaves: it needs the slice no more.
    """

    scope: str
    share: float
    requests: float
    tokens: float
    demand: float
    request_burst: float
    token_burst: float
    leaves: bool


@dataclass(frozen=True)
class SliceGrant:
    """What came of an offer: the share that is written, and units that came with its growth.

    Attributes:
      due: the share that this gateway should have by all gateways' demand.
    """

    scope: str
    share: float
    requests: float
    tokens: float
    due: float


class Slice:
    """A gateway's part of the limits of one scope; used by one thread.

    Attributes:
      num_held: requests that something is reserved for, running or waiting.
      num_running: answers that run.
      was_offered: whether the database has been told of it.
    """

    def __init__(self, scope: str, limits: Limits, policy: SlicePolicy, now: float) -> None:
        self.scope = scope
        self._policy = policy
        self._limits = limits
        self._granted = False
        self._share = policy.credit
        self._due = 1.0
        self._asked = 0.0
        self._demand = 0.0
        self._used_s = now
        self.num_held = self.num_running = 0
        self.was_offered = False
        self.requests = _bucket(limits.requests_per_minute, limits.request_burst, self._share, now, on_credit=True)
        self.tokens = _bucket(limits.tokens_per_minute, limits.token_burst, self._share, now, on_credit=True)
        self.places = None if limits.concurrency is None else Places(limits.concurrency, self._share)

    @property
    def share(self) -> float:
        """The part of the limits that this gateway uses and that is written for it; 0 while it is on credit."""
        return self._share if self._granted else 0.0

    @property
    def is_on_credit(self) -> bool:
        return not self._granted

    @property
    def is_whole(self) -> bool:
        """Whether this gateway holds all of the limits, so that the database has no more to give."""
        return self.share > 1 - _SLACK

    def update(self, limits: Limits, now: float) -> None:
        """Takes over limits that an operator changed."""
        if limits is self._limits or limits == self._limits:  # nearly always the same object
            return
        self._limits = limits
        on_credit = not self._granted
        args = (self._share, now)
        self.requests = _renewed(
            self.requests, _bucket(limits.requests_per_minute, limits.request_burst, *args, on_credit=on_credit)
        )
        self.tokens = _renewed(
            self.tokens, _bucket(limits.tokens_per_minute, limits.token_burst, *args, on_credit=on_credit)
        )
        self.places = None if limits.concurrency is None else Places(limits.concurrency, self._share, self.num_running)

    def wait_s(self, tokens: float, now: float) -> float:
        """Seconds until one request of so many tokens is within the rates; 0 if it is now."""
        self._is_asked_for(tokens, now)
        return self._missing_s(tokens, now)

    def least_wait_s(self, now: float) -> float:
        """Seconds until any request can be within the rates; 0 if the smallest is now. Others `wait_s` decides on."""
        wait_s = self._missing_s(1.0, now)
        if wait_s > 0:
            self._is_asked_for(1.0, now)
        return wait_s

    def take(self, tokens: float) -> None:
        """Reserves for one request, which `give_back` ends."""
        self.num_held += 1
        if self.requests is not None:
            self.requests.take(1.0)
        if self.tokens is not None:
            self.tokens.take(tokens)

    def give_back(self, tokens: float, *, request: bool = False) -> None:
        """Ends what `take` began: returns tokens that were not used, and the request where it was never sent."""
        self.num_held -= 1
        if self.tokens is not None:
            self.tokens.give_back(tokens)
        if request and self.requests is not None:
            self.requests.give_back(1.0)

    def has_place(self) -> bool:
        """Whether one more answer may run; on credit and with a small share at least one may."""
        places = self.places
        return places is None or places.is_free() or (places.used == 0 and self._share > 0)

    def enter(self) -> None:
        """One more answer runs."""
        self._count(1)

    def leave(self) -> None:
        """One answer less runs."""
        self._count(-1)

    def _is_asked_for(self, tokens: float, now: float) -> None:
        self._used_s = now
        limits = self._limits
        self._asked += max(
            1 / (limits.requests_per_minute or math.inf), tokens / (limits.tokens_per_minute or math.inf)
        )

    def _missing_s(self, tokens: float, now: float) -> float:
        requests_s = self.requests.wait_s(1.0, now) if self.requests is not None else 0.0
        tokens_s = self.tokens.wait_s(tokens, now) if self.tokens is not None else 0.0
        return max(requests_s, tokens_s)

    def _count(self, change: int) -> None:
        self.num_running += change
        if self.places is not None:
            self.places.used = self.num_running

    def offer(self, now: float, elapsed_s: float, *, leaving: bool = False) -> SliceOffer:
        """What the database is to be told; a share that becomes smaller is smaller from now on.

        Args:
          leaving: the process ends; everything is given up.
        """
        self.was_offered = True
        elapsed_s = max(elapsed_s, 1e-3)
        old = math.exp(-elapsed_s / _MEMORY_S)
        self._demand = old * self._demand + (1 - old) * self._asked / elapsed_s
        self._asked = 0.0
        busy = self.num_held > 0
        is_idle = not busy and now - self._used_s > self._policy.idle_s
        leaves = leaving or (is_idle and not self._owes(now))
        requests = tokens = 0.0
        if self._granted:
            due = 0.0 if leaves else max(self._due, self._least_share())
            if due < self._share - (0.0 if leaves else _SLACK):
                requests, tokens = self._reshare(due, now)
        return SliceOffer(
            self.scope,
            self.share,
            max(requests, 0.0),
            max(tokens, 0.0),
            self._demand,
            self.requests.burst if self.requests is not None else 0.0,
            self.tokens.burst if self.tokens is not None else 0.0,
            leaves,
        )

    def granted(self, grant: SliceGrant, now: float) -> bool:
        """Takes over what was written; whether the share should become smaller at once, since others wait for it."""
        self._due = grant.due
        if not self._granted:
            if grant.share <= 0:
                return False  # others hold all of it: they make room when they see that this one is there
            self._begin(grant.share, now)
        elif grant.share > self._share:
            self._reshare(grant.share, now)
        for bucket, units in ((self.requests, grant.requests), (self.tokens, grant.tokens)):
            if bucket is not None:
                bucket.level = min(max(bucket.capacity, bucket.level), bucket.level + units)
        return self._share > max(self._due, self._least_share()) + _SLACK

    def cut_off(self, now: float) -> None:
        """The lease ran out: from now on others may hold what was this gateway's."""
        if self._granted:
            self._reshare(min(self._share, self._policy.cut_off_share), now)
        else:
            for bucket, rate in (
                (self.requests, self._limits.requests_per_minute),
                (self.tokens, self._limits.tokens_per_minute),
            ):
                if bucket is not None and bucket.rate == 0.0:
                    bucket.fill(now)
                    bucket.rate = (rate or 0) / _MINUTE_S

    def lost(self, now: float) -> None:
        """Others took the slice while this gateway was cut off: it begins anew, with what it has spent as a debt."""
        if not self._granted:
            return
        self._reshare(0.0, now)
        for bucket in (self.requests, self.tokens):
            if bucket is not None:
                bucket.level = min(bucket.level, 0.0)

    def _owes(self, now: float) -> bool:
        owes = False
        for bucket in (self.requests, self.tokens):
            if bucket is not None:
                bucket.fill(now)
                owes = owes or bucket.level < (bucket.capacity if self.is_on_credit else 0.0)
        return owes

    def _least_share(self) -> float:
        places = self.places
        return 0.0 if places is None else min(1.0, places.used / places.limit)

    def _begin(self, share: float, now: float) -> None:
        """Puts the written share in the place of the credit; what was spent on credit is owed."""
        self._granted = True
        for bucket, rate in (
            (self.requests, self._limits.requests_per_minute),
            (self.tokens, self._limits.tokens_per_minute),
        ):
            if bucket is not None:
                bucket.fill(now)
                spent = bucket.capacity - bucket.level
                bucket.share, bucket.level, bucket.rate = share, -spent, (rate or 0) / _MINUTE_S
        self._share = share
        if self.places is not None:
            self.places.share = share

    def _reshare(self, share: float, now: float) -> tuple[float, float]:
        requests = self.requests.reshare(share, now) if self.requests is not None else 0.0
        tokens = self.tokens.reshare(share, now) if self.tokens is not None else 0.0
        self._share = share
        if self.places is not None:
            self.places.share = share
        return requests, tokens


def _bucket(per_minute: int | None, burst: int | None, share: float, now: float, *, on_credit: bool) -> Bucket | None:
    if per_minute is None:
        return None
    size = float(per_minute if burst is None else burst)
    return Bucket(0.0 if on_credit else per_minute / _MINUTE_S, size, share, share * size, now)


def _renewed(old: Bucket | None, new: Bucket | None) -> Bucket | None:
    """A bucket of new size, no fuller than the old one was."""
    if old is not None and new is not None:
        new.level = min(new.level, old.level)
    return new
