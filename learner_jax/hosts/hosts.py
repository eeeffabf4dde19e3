"""The processes of one learner: what they agree on, and how all of them end when one can't go on.

Values travel through the key-value store of JAX's coordination service, never through device collectives: a host may
then wait for a slow one for as long as it is allowed to, every wait is bounded, and says what it waited for.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, Self

import jax
import msgspec

from learner_jax.hosts import coordination
from learner_jax.hosts.roll_call import differences
from learner_jax.hosts.watch import Watch
from learner_jax.hosts.wire import Facts, HostError
from learner_jax.runtime import Waits
from learner_jax.settings import HOSTS_SECRET, HostsSettings

#: Seconds between two looks at whether another host has failed, while waiting for a value.
_POLL_S = 1.0
#: Values that the leader keeps at most before it asks whether everyone has read them.
_MAX_UNREAD = 64
_FAILED = "weir/failed"
_GIVE = (
    "set learner.hosts.coordinator=ADDRESS:PORT, learner.hosts.index and learner.hosts.count where no cluster "
    "environment gives them (SLURM, MPI, JobSet)"
)


__all__ = ["HostError", "Hosts", "KeyValues", "connect", "ends_at_once"]


class KeyValues(Protocol):
    """A store that all hosts share."""

    def put(self, key: str, value: bytes) -> bool:
        """Sets a key that must be new; False if it is there already."""

    def wait(self, key: str, timeout_s: float) -> bytes | None:
        """The key's value as soon as it is set; None after `timeout_s`."""

    def delete(self, key: str) -> None:
        """Forgets a key."""


class Hosts:
    """One of `count` hosts that run the same program; host 0 is the leader.

    All hosts call `agree`, `gather` and `barrier` in the same order with the same `what`. With one host nothing is
    exchanged. As a context manager: an exception tells the other hosts, which then stop instead of waiting; without one
    all hosts leave together.

    Args:
      timeout_s: bound of every wait.
      waits: where its waits are seen.
      watch: sees the end of other hosts; without one, only those that fail in words are known of.
    """

    def __init__(
        self,
        index: int = 0,
        count: int = 1,
        *,
        store: KeyValues | None = None,
        timeout_s: float = 600.0,
        waits: Waits | None = None,
        watch: Watch | None = None,
    ) -> None:
        if count > 1 and store is None:
            raise ValueError("several hosts need a store that they share")
        self.index, self.count = index, count
        self.waits = waits or Waits()
        self._store, self._timeout_s, self._watch = store, timeout_s, watch
        self._number = 0
        self._unread: list[str] = []  # keys of the leader's values that some host may not have read yet
        self._failed = False

    @property
    def is_leader(self) -> bool:
        return self.index == 0

    @property
    def name(self) -> str:
        return f"host {self.index} of {self.count}"

    def agree(self, value: Any, what: str) -> Any:
        """The leader's value, on every host; msgpack's types, tuples become lists.

        Raises:
          HostError: the leader did not answer in time, failed, or is somewhere else in the program.
        """
        if self.count == 1:
            return value
        if len(self._unread) >= _MAX_UNREAD:
            self.barrier("that all values so far are read")
        return self._from_leader(value, what)

    def gather(self, value: Any, what: str) -> list[Any]:
        """Every host's value in the order of hosts, on every host; msgpack's types, tuples become lists.

        Raises:
          HostError: a host did not answer in time, failed, or is somewhere else in the program.
        """
        if self.count == 1:
            return [value]
        number = self._next()
        if not self.is_leader:
            self._put(f"weir/{number}/{self.index}", what, value)
            self._forget(delete=False)
            # Longer than the leader waits: it knows which host is missing, and says so.
            return list(self._from_leader(None, what, patience=2.0))
        values = [value]
        deadline = time.monotonic() + self._timeout_s
        for host in range(1, self.count):
            key = f"weir/{number}/{host}"
            values.append(self._get(key, what, host, deadline))
            self._delete(key)
        # A host that has put its value here has read everything before it.
        self._forget(delete=True)
        return list(self._from_leader(values, what))

    def barrier(self, what: str) -> None:
        """Returns once every host has come here."""
        self.gather(None, what)

    def require_same(self, what: str, values: Mapping[str, str]) -> None:
        """Returns if all hosts hold the same values by the same names.

        Raises:
          HostError: they don't; all hosts are told the same.
        """
        every = self.gather(dict(values), f"comparison of {what}")
        if different := differences(dict(enumerate(every))):
            raise HostError(f"{self.name}: hosts disagree on the {what}: {different}; give all the same")

    def log_failures(self, log: Callable[..., None]) -> None:
        """Has `log` told of the reason when another host's end ends this process."""
        if self._watch is not None:
            self._watch.log_ends(log)

    def fail(self, message: str) -> None:
        """Tells the other hosts that this one can't go on; the first to fail is the one that they name."""
        if self._store is None or self._failed:
            return
        self._failed = True
        if self._watch is not None:
            self._watch.fail(message)
            return
        with contextlib.suppress(HostError):
            self._store.put(_FAILED, msgspec.msgpack.encode([self.index, message]))

    @contextlib.contextmanager
    def telling(self) -> Iterator[None]:
        """Tells the other hosts of an exception of the block at once, before anything else is cleaned up.

        An error may come from another host's end: JAX, its collectives and Orbax raise theirs then. So it is held back
        until all hosts were seen alive; if one is not, this process ends with that as its reason.
        """
        try:
            yield
        except BaseException as error:
            self._tell(error)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is not None:
            self._tell(error)
            return
        with self.telling():
            self.barrier("the end of the run")
        if self._watch is not None:
            self._watch.leave()

    def _tell(self, error: BaseException) -> None:
        if self._watch is not None and not self._failed and isinstance(error, Exception):
            self._watch.settle()
        match error:
            case HostError():
                self.fail(str(error).removeprefix(f"{self.name}: "))
            case KeyboardInterrupt():
                self.fail("it was interrupted")
            case _:
                self.fail(f"{type(error).__name__}: {error}")

    def _next(self) -> int:
        self._number += 1
        return self._number

    def _from_leader(self, value: Any, what: str, *, patience: float = 1.0) -> Any:
        key = f"weir/{self._next()}"
        self._unread.append(key)
        if not self.is_leader:
            return self._get(key, what, 0, time.monotonic() + patience * self._timeout_s)
        self._put(key, what, value)
        return msgspec.msgpack.decode(msgspec.msgpack.encode(value))  # the same types on every host

    def _forget(self, *, delete: bool) -> None:
        for key in self._unread if delete else ():
            self._delete(key)
        self._unread.clear()

    def _put(self, key: str, what: str, value: Any) -> None:
        assert self._store is not None
        if not self._store.put(key, msgspec.msgpack.encode([what, value])):
            raise HostError(f"{self.name}: {what!r} was announced before; is another host's index the same?")

    def _delete(self, key: str) -> None:
        assert self._store is not None
        self._store.delete(key)

    def _get(self, key: str, what: str, host: int, deadline: float) -> Any:
        """What a host announced as `what`."""
        assert self._store is not None
        limit_s = max(deadline - time.monotonic(), 0.0)
        with self.waits.waiting(repr(what), on=f"host {host} of the learner", limit_s=limit_s) as wait:
            while (payload := self._store.wait(key, min(_POLL_S, max(wait.remaining_s, 0.001)))) is None:
                if (failure := self._store.wait(_FAILED, 0.001)) is not None:
                    failed, message = msgspec.msgpack.decode(failure)
                    self._failed = True
                    raise HostError(f"{self.name} stops, because host {failed} failed: {message}")
                if wait.remaining_s == 0:
                    message = f"host {host} of {self.count} did not answer {what!r} within {self._timeout_s:g} s"
                    self.fail(message)
                    raise HostError(f"{self.name}: {message}; look at that host's log")
        theirs, value = msgspec.msgpack.decode(payload)
        if theirs != what:
            message = f"host {host} is at {theirs!r} where host {self.index} is at {what!r}"
            self.fail(message)
            raise HostError(f"{message}: they must run the same program with the same settings")
        return value


def connect(
    settings: HostsSettings,
    *,
    timeout_s: float,
    facts: Facts | None = None,
    environment: Mapping[str, str] = os.environ,
    waits: Waits | None = None,
) -> Hosts:
    """Joins the learner's other processes; call it before anything else of JAX.

    From here on another host's end ends this process with status 1 and the reason as its last line, wherever it is,
    within `settings.heartbeat_timeout_s` and `host_peers.END_WITHIN_S`. That bounds device collectives too.

    Args:
      timeout_s: bound of every later wait for another host.
      facts: what must be the same on all hosts, by section and name.
      waits: where its waits are seen.
    Raises:
      HostError: not all hosts came within `settings.connect_timeout_s`, or they can't train together.
    """
    waits = waits or Waits()
    if settings.count == 1:
        return Hosts(waits=waits)
    coordinator, index, devices = _place(settings, environment)
    who = f"host {index} of {settings.count}"
    secret = environment.get(HOSTS_SECRET, "")
    watch = Watch(index, settings.count, heartbeat_s=settings.heartbeat_timeout_s)
    with waits.waiting("all hosts to join", on="other hosts of the learner", limit_s=settings.connect_timeout_s):
        try:
            joined = watch.join(coordinator, facts or {}, timeout_s=settings.connect_timeout_s, secret=secret)
        except HostError as error:
            raise HostError(f"{who}: {error}") from None
    try:
        coordination.start(joined, index, settings.count, devices, heartbeat_s=settings.heartbeat_timeout_s)
    except Exception as error:
        watch.settle()
        watch.fail(f"JAX can't join: {error}")
        raise HostError(f"{who}: JAX can't join the others: {error}") from error
    store = coordination.CoordinationService()
    hosts = Hosts(index, settings.count, store=store, timeout_s=timeout_s, waits=waits, watch=watch)
    with hosts.telling():
        _require_same_devices(hosts)
        watch.forget_sockets()
    return hosts


def _place(settings: HostsSettings, environment: Mapping[str, str]) -> tuple[str, int, Sequence[int] | None]:
    """Coordinator, index and local devices of this process, from the settings or the environment."""
    index = settings.index
    if index == -1 and (given := environment.get("JOB_COMPLETION_INDEX", "")).isdigit():  # Kubernetes JobSet
        index = int(given)
    given_index = index if index >= 0 else None
    named = environment.get("JAX_LOCAL_DEVICE_IDS", "")
    local_devices = [int(number) for number in named.split(",")] if named.replace(",", "").isdigit() else None
    try:
        address, found, devices = coordination.found_in_cluster(
            settings.coordinator or environment.get("JAX_COORDINATOR_ADDRESS"),
            settings.count,
            given_index,
            local_devices,
            settings.connect_timeout_s,
        )
    except (ValueError, RuntimeError, OSError, KeyError) as error:
        raise HostError(f"a host of {settings.count} can't ask its cluster for its place: {error}; {_GIVE}") from error
    missing = [name for name, value in (("coordinator", address), ("index", found)) if value is None]
    if address is None or found is None:
        raise HostError(f"learner.hosts.count is {settings.count}, but {' and '.join(missing)} is not known: {_GIVE}")
    if not 0 <= found < settings.count:
        raise HostError(
            f"this process has index {found} by its environment, expected 0 to {settings.count - 1}: "
            f"learner.hosts.count is {settings.count}"
        )
    return address, found, devices


def _require_same_devices(hosts: Hosts) -> None:
    own = {"number": str(jax.local_device_count()), "kind": jax.local_devices()[0].device_kind}
    hosts.require_same("devices of a host", own | {"platform": jax.default_backend()})


@contextlib.contextmanager
def ends_at_once() -> Iterator[None]:
    """The outermost block of a host's program: ends the process as the block ends, with its status.

    Python's own way out would close, in any order, what JAX still listens to, and JAX aborts the process when it sees
    that; everything that had to be written is by then.
    """
    status = 0
    try:
        yield
    except BaseException as error:
        if not coordination.is_started():
            raise
        status = 1
        if isinstance(error, SystemExit) and isinstance(error.code, int | None):
            status = error.code or 0
        else:
            sys.excepthook(type(error), error, error.__traceback__)
    if coordination.is_started():
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(status)
