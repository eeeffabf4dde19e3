"""What hosts agree on, as threads around a store in memory."""

from __future__ import annotations

import time
from typing import Any

import pytest

from learner_jax.hosts.hosts import HostError, Hosts, _place
from learner_jax.settings.learner import HostsSettings
from tests.support.host_threads import MemoryStore, on_hosts


def test_hosts_get_the_leaders_value_and_everyones() -> None:
    def program(hosts: Hosts) -> Any:
        return hosts.agree({"mine": hosts.index}, "a"), hosts.gather([hosts.index, None], "b"), hosts.agree("x", "c")

    assert on_hosts(3, program) == [({"mine": 0}, [[0, None], [1, None], [2, None]], "x")] * 3


def test_the_store_does_not_grow() -> None:
    store = MemoryStore()

    def program(hosts: Hosts) -> None:
        for number in range(300):
            assert hosts.agree(number, "number") == number
        for number in range(50):
            hosts.gather(number, "number")

    on_hosts(2, program, store=store)
    assert len(store.values) <= 2


def test_one_host_needs_no_store() -> None:
    hosts = Hosts()
    assert (hosts.agree(3, "a"), hosts.gather(3, "b"), hosts.is_leader) == (3, [3], True)
    with pytest.raises(ValueError, match="share"):
        Hosts(0, 2)


@pytest.mark.parametrize(("silent", "asked"), [(2, "gather"), (0, "agree")])
def test_a_host_that_does_not_answer_is_named_in_time(silent: int, asked: str) -> None:
    def program(hosts: Hosts) -> None:
        if hosts.index != silent:
            getattr(hosts, asked)(1, "groups of step 17")
        else:
            time.sleep(2.5)

    started = time.monotonic()
    with pytest.raises(HostError, match=rf"host {silent} of 3 did not answer 'groups of step 17' within 0\.5 s"):
        on_hosts(3, program, timeout_s=0.5)
    assert time.monotonic() - started < 30


def test_hosts_at_different_places_are_told_so() -> None:
    with pytest.raises(HostError, match=r"host 1 is at 'right' where host 0 is at 'left'.*same program"):
        on_hosts(2, lambda hosts: hosts.gather(0, "right" if hosts.index else "left"))


def test_a_failure_ends_the_others_waits_at_once() -> None:
    def program(hosts: Hosts) -> None:
        if hosts.index == 1:
            raise RuntimeError("no disk")
        hosts.gather(0, "anything")

    started = time.monotonic()
    with pytest.raises(HostError, match="host 0 of 2 stops, because host 1 failed: RuntimeError: no disk"):
        on_hosts(2, program, timeout_s=60)
    assert time.monotonic() - started < 30


def test_the_first_failure_of_a_host_is_the_one_that_is_told() -> None:
    Hosts().fail("nobody is there to be told")
    store = MemoryStore()
    hosts = Hosts(1, 2, store=store)
    hosts.fail("the first")
    told = dict(store.values)
    assert [b"the first" in value for value in told.values()] == [True]
    store.values.clear()
    hosts.fail("the second")
    assert store.values == {}


def test_what_hosts_must_have_alike_is_compared_by_name() -> None:
    on_hosts(3, lambda hosts: hosts.require_same("model folder", {"config.json": "12 bytes, ab"}))

    def program(hosts: Hosts) -> None:
        files = {"config.json": "12 bytes, ab"} | ({"model.safetensors": "9 bytes"} if hosts.index < 2 else {})
        hosts.require_same("model folder", files)

    expected = r"disagree on the model folder: model\.safetensors is 9 bytes on host 0 and missing on host 2"
    with pytest.raises(HostError, match=expected):
        on_hosts(3, program)


@pytest.mark.parametrize(
    ("told", "environment", "expected"),
    [
        ({"index": 1, "coordinator": "a:1"}, {}, ("a:1", 1, None)),
        ({}, {"JOB_COMPLETION_INDEX": "2", "JAX_COORDINATOR_ADDRESS": "b:2"}, ("b:2", 2, None)),
        ({"index": 0, "coordinator": "a:1"}, {"JAX_LOCAL_DEVICE_IDS": "2,3"}, ("a:1", 0, [2, 3])),
    ],
)
def test_a_host_s_place_is_told_or_stands_in_the_environment(
    told: dict[str, Any], environment: dict[str, str], expected: tuple[str, int, list[int] | None]
) -> None:
    assert _place(HostsSettings.model_validate({"count": 3} | told), environment) == expected


def test_a_host_that_does_not_know_its_place_is_told_what_to_set() -> None:
    with pytest.raises(HostError, match=r"coordinator and index is not known: set learner\.hosts\.coordinator"):
        _place(HostsSettings(count=3), {})
    with pytest.raises(HostError, match="index 5 by its environment, expected 0 to 2"):
        _place(HostsSettings(count=3, coordinator="a:1"), {"JOB_COMPLETION_INDEX": "5"})


def test_a_host_that_is_interrupted_says_so() -> None:
    def program(hosts: Hosts) -> None:
        if hosts.index == 1:
            raise KeyboardInterrupt
        hosts.gather(0, "anything")

    with pytest.raises(HostError, match="host 0 of 2 stops, because host 1 failed: it was interrupted"):
        on_hosts(2, program)
