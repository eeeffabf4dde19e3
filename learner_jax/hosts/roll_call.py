"""The hosts of a learner find each other: all come to host 0, which lets them train together or tells all why not."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from dataclasses import dataclass, field

from learner_jax.hosts.wire import (
    Connection,
    Facts,
    Hello,
    HostError,
    Refused,
    Welcome,
    WireError,
    is_same,
    proof,
    shown,
)
from learner_jax.settings import HOSTS_SECRET

#: After hosts were seen to disagree, how long host 0 waits for the rest, to tell them as well.
_LATE_S = 10.0
_RETRY_S = 0.2
_MOST_SHOWN = 5


@dataclass(frozen=True)
class Guest:
    """A host that came to host 0."""

    hello: Hello
    connection: Connection


@dataclass
class Roll:
    """Who has come to host 0.

    Attributes:
      own: what host 0 says of itself.
      secret: what hosts must know; empty if there is none.
      ended: hosts that came and went again.
      strangers: addresses that were turned away for not knowing the secret.
    """

    own: Hello
    secret: str = ""
    guests: list[Guest] = field(default_factory=list)
    ended: list[int] = field(default_factory=list)
    strangers: set[str] = field(default_factory=set)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    #: what is told to whoever comes after the roll was closed
    closed: str = ""

    @property
    def missing(self) -> list[int]:
        here = {guest.hello.index for guest in self.guests}
        return [index for index in range(1, self.own.count) if index not in here]

    async def admit(self, hello: Hello, connection: Connection) -> bool:
        """Takes a host in; False if it was turned away at once."""
        if self.secret and not is_same(proof(self.secret, hello), hello.proof):
            self.strangers.add(connection.remote_address)
            connection.send(Refused(f"{HOSTS_SECRET} in the environment is not the same as on host 0"))
            return False
        if self.closed:
            connection.send(Refused(self.closed))
            return False
        self.guests.append(Guest(hello, connection))
        self.changed.set()
        return True

    def left(self, hello: Hello) -> None:
        """A host that was taken in has hung up."""
        if not self.closed:
            self.ended.append(hello.index)
            self.changed.set()

    def problem(self) -> str:
        """Why these hosts can't train together, as far as can be told by now; empty if nothing speaks against it."""
        if self.ended:
            return f"host {self.ended[0]} ended while the hosts were joining; look at its log"
        everyone = [self.own, *(guest.hello for guest in self.guests)]
        places = {0: ["where host 0 is"]}
        for guest in self.guests:
            places.setdefault(guest.hello.index, []).append(f"at {guest.connection.remote_address}")
        for index, where in sorted(places.items()):
            if len(where) > 1:
                return (
                    f"{len(where)} processes have index {index} ({', '.join(where)}): give each its own "
                    f"learner.hosts.index, 0 to {self.own.count - 1}"
                )
        counts = {hello.index: str(hello.count) for hello in everyone}
        if different := differences({index: {"learner.hosts.count": count} for index, count in counts.items()}):
            return f"hosts disagree on how many they are: {different}"
        return disagreement({hello.index: hello.facts for hello in everyone})

    async def complete(self, timeout_s: float, where: str) -> None:
        """Returns once all hosts have come and agree.

        Raises:
          HostError: they do not within `timeout_s`, they disagree, or one ended.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        told_at: float | None = None
        while True:
            problem = self.problem()
            if problem and told_at is None:
                told_at = min(deadline, loop.time() + _LATE_S)
            everyone_came = len(self.guests) >= self.own.count - 1
            if (everyone_came or self.ended) and (problem or not self.missing):
                break
            remaining = (deadline if told_at is None else told_at) - loop.time()
            if remaining <= 0:
                problem = problem or self._absent(timeout_s, where)
                break
            self.changed.clear()
            try:
                await asyncio.wait_for(self.changed.wait(), remaining)
            except TimeoutError:
                continue
        if problem:
            self.closed = problem
            for guest in self.guests:
                guest.connection.send(Refused(problem))
            raise HostError(problem)
        self.closed = f"the {self.own.count} hosts of this learner have come already, and train; see which runs twice"

    def _absent(self, timeout_s: float, where: str) -> str:
        plural = "hosts" if len(self.missing) > 1 else "host"
        text = (
            f"not all {self.own.count} hosts joined at {where} within {timeout_s:g} s "
            f"(learner.hosts.connect_timeout_s): {plural} {', '.join(map(str, self.missing))} did not come; see that "
            f"{self.own.count} processes run, with indices 0 to {self.own.count - 1}, and that they reach host 0 there"
        )
        if self.strangers:
            text += f"; turned away for another {HOSTS_SECRET}: {', '.join(sorted(self.strangers)[:_MOST_SHOWN])}"
        return text

    def welcome(self, token: bytes) -> None:
        """Tells all hosts where the others are."""
        addresses = {guest.hello.index: (guest.connection.remote_address, guest.hello.port) for guest in self.guests}
        for guest in self.guests:
            guest.connection.send(Welcome(addresses, token))


def disagreement(facts: dict[int, Facts]) -> str:
    """In what the hosts' facts differ; empty if in nothing."""
    for section in sorted({name for host in facts.values() for name in host}):
        if different := differences({index: host.get(section, {}) for index, host in facts.items()}):
            return f"hosts disagree on {section}: {different}; give all the same"
    return ""


def differences(values: dict[int, dict[str, str]]) -> str:
    """What differs between hosts, by name, with the values of host 0, or the first, and of one that differs."""
    first = min(values)
    found = []
    for name in sorted({name for host in values.values() for name in host}):
        expected = values[first].get(name)
        other = next((index for index in sorted(values) if values[index].get(name) != expected), None)
        if other is not None:
            found.append(
                f"{shown(name)} is {_shown(expected)} on host {first} and "
                f"{_shown(values[other].get(name))} on host {other}"
            )
    more = f", and {len(found) - _MOST_SHOWN} more" if len(found) > _MOST_SHOWN else ""
    return ", ".join(found[:_MOST_SHOWN]) + more


def _shown(value: str | None) -> str:
    if value is None:
        return "missing"
    text = shown(value)
    return text if len(text) <= 60 else text[:57] + "..."


async def come(address: tuple[str, int], timeout_s: float) -> Connection:
    """A follower's connection to host 0, which may start later.

    Raises:
      HostError: there is none within `timeout_s`.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    reason = "it did not answer"
    while (remaining := deadline - loop.time()) > 0:
        connection: Connection | None = None
        try:
            connection = Connection(*await asyncio.wait_for(asyncio.open_connection(*address), remaining))
            connection.open()
            await asyncio.wait_for(connection.opened(), max(deadline - loop.time(), 0.001))
            found, connection = connection, None
            return found
        except TimeoutError:
            break
        except (WireError, asyncio.IncompleteReadError):
            reason = "what listens there is not host 0 of a learner, or ended at once"
        except OSError as error:
            reason = os.strerror(error.errno) if error.errno is not None and error.errno > 0 else str(error)
        finally:
            if connection is not None:
                connection.close()
        await asyncio.sleep(min(_RETRY_S, max(deadline - loop.time(), 0)))
    raise HostError(
        f"host 0 could not be reached at {shown_address(address)} within {timeout_s:g} s "
        f"(learner.hosts.connect_timeout_s): {reason}; see that it runs, that learner.hosts.coordinator is its "
        f"address, and that no firewall is between"
    )


async def answered(connection: Connection, hello: Hello, timeout_s: float) -> Welcome:
    """Asks host 0 to join, and waits for its answer.

    Raises:
      HostError: it refused, ended, or did not answer in time.
    """
    connection.send(hello)
    try:
        answer = await asyncio.wait_for(connection.receive(), timeout_s)
    except TimeoutError:
        raise HostError(
            f"not all {hello.count} hosts joined within {timeout_s:g} s (learner.hosts.connect_timeout_s), and host 0 "
            f"did not say which are missing; look at its log"
        ) from None
    except (asyncio.IncompleteReadError, OSError):
        raise HostError("host 0 ended while the hosts were joining; look at its log") from None
    if isinstance(answer, Refused):
        raise HostError(shown(answer.message))
    if not isinstance(answer, Welcome):
        raise HostError("what listens at learner.hosts.coordinator is not host 0 of this learner")
    return answer


def shown_address(address: Sequence[str | int]) -> str:
    host, port = address[:2]
    return f"[{host}]:{port}" if ":" in str(host) else f"{host}:{port}"


def parse_address(text: str) -> tuple[str, int]:
    """HOST:PORT, or [ADDRESS]:PORT of IPv6.

    Raises:
      HostError: it is not.
    """
    host, colon, port = text.rpartition(":")
    host = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not (colon and host and port.isdigit() and 0 < int(port) < 65536):
        raise HostError(f"learner.hosts.coordinator is {text!r}, expected ADDRESS:PORT of host 0")
    return host, int(port)
