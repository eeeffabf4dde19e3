"""The processes of one learner: what they agree on, and how all of them end when one can't go on.

Values travel through the key-value store of JAX's coordination service, never through device collectives: a host may
then wait for a slow one for as long as it is allowed to, every wait is bounded, and says what it waited for.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol, Self

import jax
import msgspec

from learner_jax.config import HostsSettings
from learner_jax.waits import Waits

#: Seconds between two looks at whether another host has failed, while waiting for a value.
_POLL_S = 1.0
#: Values that the leader keeps at most before it asks whether everyone has read them.
_MAX_UNREAD = 64
_FAILED = "weir/failed"


class HostError(RuntimeError):
    """The hosts of a learner can't go on together; the message names the host and what was waited for."""


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
    """

    def __init__(
        self,
        index: int = 0,
        count: int = 1,
        *,
        store: KeyValues | None = None,
        timeout_s: float = 600.0,
        waits: Waits | None = None,
    ) -> None:
        if count > 1 and store is None:
            raise ValueError("several hosts need a store that they share")
        self.index, self.count = index, count
        self.waits = waits or Waits()
        self._store, self._timeout_s = store, timeout_s
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

    def fail(self, message: str) -> None:
        """Tells the other hosts that this one can't go on; the first to fail is the one that they name."""
        if self._store is None or self._failed:
            return
        self._failed = True
        with contextlib.suppress(HostError):  # out of reach: the others then learn of it by the heartbeat
            self._store.put(_FAILED, msgspec.msgpack.encode([self.index, message]))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is None:
            self.barrier("the end of the run")
        elif not isinstance(error, HostError):
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
    environment: Mapping[str, str] = os.environ,
    waits: Waits | None = None,
) -> Hosts:
    """Joins the learner's other processes; call it before anything else of JAX.

    A host that dies later ends the others by JAX's heartbeat, within about `settings.heartbeat_timeout_s` and with a
    status that is not 0, wherever they are. That bounds waits inside device collectives, which know no timeout.

    Args:
      timeout_s: bound of every later wait for another host.
      waits: where its waits are seen.
    Raises:
      HostError: not all hosts came within `settings.connect_timeout_s`, or they do not have the same number of devices.
    """
    waits = waits or Waits()
    if settings.count == 1:
        return Hosts(waits=waits)
    index = settings.index
    if index == -1 and (given := environment.get("JOB_COMPLETION_INDEX", "")).isdigit():  # Kubernetes JobSet
        index = int(given)
    who = f"host {index} of {settings.count}" if index >= 0 else f"a host of {settings.count}"
    heartbeat_s = round(settings.heartbeat_timeout_s)

    def join() -> None:
        jax.distributed.initialize(
            settings.coordinator or None,
            settings.count,
            index if index >= 0 else None,
            initialization_timeout=round(settings.connect_timeout_s) + 60,  # JAX aborts then; we give up before
            heartbeat_timeout_seconds=heartbeat_s,
            shutdown_timeout_seconds=heartbeat_s,
        )

    with waits.waiting("all hosts to join", on="other hosts of the learner", limit_s=settings.connect_timeout_s):
        _within(join, settings, who)
    if jax.process_count() != settings.count:
        raise HostError(f"learner.hosts.count is {settings.count}, but JAX runs {jax.process_count()} processes")
    hosts = Hosts(jax.process_index(), settings.count, store=_coordination_service(), timeout_s=timeout_s, waits=waits)
    devices = hosts.gather(jax.local_device_count(), "number of devices")
    if len(set(devices)) > 1:
        shown = ", ".join(f"host {host}: {number}" for host, number in enumerate(devices))
        raise HostError(f"hosts have different numbers of devices ({shown}): give each the same")
    return hosts


def _within(join: Callable[[], None], settings: HostsSettings, who: str) -> None:
    """Runs `join` in a thread, since nothing interrupts it: JAX aborts the process where it can't connect in time."""
    outcome: list[BaseException | None] = []

    def run() -> None:
        try:
            join()
        except BaseException as error:  # noqa: BLE001 - handed to the thread that waits
            outcome.append(error)
        else:
            outcome.append(None)

    thread = threading.Thread(target=run, name="connect", daemon=True)
    thread.start()
    thread.join(settings.connect_timeout_s)
    if not outcome:
        at = settings.coordinator or "the address that the cluster gave"
        raise HostError(
            f"{who}: not all {settings.count} hosts joined at {at} within {settings.connect_timeout_s:g} s "
            f"(learner.hosts.connect_timeout_s): see that {settings.count} processes run, with indices 0 to "
            f"{settings.count - 1}, and that they reach host 0 there"
        )
    if isinstance(outcome[0], ValueError | RuntimeError):
        raise HostError(
            f"{who} can't join the others: {outcome[0]} Set learner.hosts.coordinator=ADDRESS:PORT, "
            f"learner.hosts.index and learner.hosts.count where no cluster environment gives them (SLURM, MPI, JobSet)"
        ) from outcome[0]
    if outcome[0] is not None:
        raise outcome[0]


def _coordination_service() -> KeyValues:
    """The key-value store of `jax.distributed`; no public name leads to it, and Orbax takes the same way."""
    from jax._src import distributed

    client = distributed.global_state.client
    assert client is not None
    return _CoordinationService(client)


class _CoordinationService:
    def __init__(self, client: Any) -> None:
        self._client = client

    def put(self, key: str, value: bytes) -> bool:
        try:
            self._client.key_value_set_bytes(key, value)
        except jax.errors.JaxRuntimeError as error:
            if "ALREADY_EXISTS" in str(error):
                return False
            raise HostError(f"the coordination service of JAX is out of reach: {error}") from error
        return True

    def wait(self, key: str, timeout_s: float) -> bytes | None:
        try:
            value: bytes = self._client.blocking_key_value_get_bytes(key, max(1, round(timeout_s * 1000)))
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" in str(error):
                return None
            raise HostError(f"the coordination service of JAX is out of reach: {error}") from error
        return value

    def delete(self, key: str) -> None:
        self._client.key_value_delete(key)
