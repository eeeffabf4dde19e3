"""The steps by which a host joins the others, in their order, without any of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from learner_jax.hosts import hosts as module
from learner_jax.hosts.hosts import HostError, connect
from learner_jax.hosts.watch import Joined
from learner_jax.runtime.waits import Waits
from learner_jax.settings.learner import HostsSettings

SETTINGS = HostsSettings(count=2, index=1, coordinator="10.0.0.1:7", heartbeat_timeout_s=9.0, connect_timeout_s=33.0)
JOINED = Joined("10.0.0.2", Path("sockets"))
ENVIRONMENT = {"WEIR_HOSTS_SECRET": "known"}
FACTS = {"settings": {"learner.steps": "3"}}


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What is done, in order; an exception in `fails` is raised by the step of its name."""
    done: list[Any] = []

    class Watch:
        def __init__(self, index: int, count: int, *, heartbeat_s: float) -> None:
            done.append(("watch", index, count, heartbeat_s))

        def join(self, coordinator: str, facts: Any, *, timeout_s: float, secret: str) -> Joined:
            (wait,) = WAITS.current()
            done.append(("join", coordinator, facts, timeout_s, secret, wait.on))
            return JOINED

        def settle(self) -> None:
            done.append("settle")

        def fail(self, message: str) -> None:
            done.append(f"fail: {message}")

        def forget_sockets(self) -> None:
            done.append("forget sockets")

    def start(joined: Joined, index: int, count: int, devices: Any, *, heartbeat_s: float) -> None:
        done.append(("start", joined, index, count, devices, heartbeat_s))

    monkeypatch.setattr(module, "Watch", Watch)
    monkeypatch.setattr(module.coordination, "start", start)
    monkeypatch.setattr(module.coordination, "CoordinationService", lambda: "the store")
    monkeypatch.setattr(module, "_require_same_devices", lambda hosts: done.append(f"same devices as {hosts._store}"))
    return done


WAITS = Waits()
BEGUN = [
    ("watch", 1, 2, 9.0),
    ("join", "10.0.0.1:7", FACTS, 33.0, "known", "other hosts of the learner"),
    ("start", JOINED, 1, 2, None, 9.0),
]


def connected() -> Any:
    return connect(SETTINGS, timeout_s=44.0, facts=FACTS, environment=ENVIRONMENT, waits=WAITS)


def test_names_that_jax_connects_by_go_once_it_has_seen_every_device(steps: list[Any]) -> None:
    hosts = connected()
    assert steps == [*BEGUN, "same devices as the store", "forget sockets"]
    assert (hosts.index, hosts.count, hosts._timeout_s, hosts.waits) == (1, 2, 44.0, WAITS)
    assert WAITS.current() == []


def test_a_host_that_jax_does_not_take_tells_the_others_unless_one_of_them_is_the_reason(
    steps: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where another host has ended, this process ends with that reason, before it tells its own."""

    def refuses(*arguments: Any, **named: Any) -> None:
        raise RuntimeError("no port")

    monkeypatch.setattr(module.coordination, "start", refuses)
    with pytest.raises(HostError, match=r"^host 1 of 2: JAX can't join the others: no port$"):
        connected()
    assert steps == [*BEGUN[:2], "settle", "fail: JAX can't join: no port"]


def test_hosts_of_other_devices_are_told_so_by_the_first_that_sees_it(
    steps: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def differ(hosts: Any) -> None:
        raise HostError("hosts disagree on the devices")

    monkeypatch.setattr(module, "_require_same_devices", differ)
    with pytest.raises(HostError, match="hosts disagree on the devices"):
        connected()
    assert steps[: len(BEGUN)] == BEGUN
    assert "forget sockets" not in steps


def test_a_lone_host_joins_nobody(steps: list[Any]) -> None:
    hosts = connect(HostsSettings(), timeout_s=44.0, waits=WAITS)
    assert (hosts.count, hosts.waits, steps) == (1, WAITS, [])
