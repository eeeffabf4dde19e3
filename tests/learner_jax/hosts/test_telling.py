"""What the other hosts are told when one of them ends: by a watch, and once."""

from __future__ import annotations

from typing import Any

import pytest

from learner_jax.hosts.hosts import HostError, Hosts
from tests.support.host_threads import MemoryStore


class Watch:
    """Notes what it is asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.log: Any = None

    def settle(self) -> None:
        self.asked.append("settle")

    def fail(self, message: str) -> None:
        self.asked.append(f"fail: {message}")

    def leave(self) -> None:
        self.asked.append("leave")

    def log_ends(self, log: Any) -> None:
        self.log = log


def host(watch: Any, count: int = 2) -> Hosts:
    """Host 1 of so many: nobody else is there, so that it waits for nobody for long."""
    return Hosts(1, count, store=MemoryStore(), timeout_s=0.1, watch=watch)


def program(hosts: Hosts, error: BaseException, *, inner: bool) -> None:
    """Fails; where it is told of in the inner block, the outer one has nothing to add."""
    with hosts:
        if inner:
            with hosts.telling():
                raise error
        raise error


@pytest.mark.parametrize("inner", [False, True])
@pytest.mark.parametrize(
    ("error", "asked"),
    [
        (RuntimeError("no disk"), ["settle", "fail: RuntimeError: no disk"]),
        (HostError("host 1 of 2: hosts disagree"), ["settle", "fail: hosts disagree"]),
        (KeyboardInterrupt(), ["fail: it was interrupted"]),
        (SystemExit(3), ["fail: SystemExit: 3"]),
    ],
    ids=["error", "host error", "interrupt", "exit"],
)
def test_an_error_is_told_once_and_held_back_until_all_were_seen_alive(
    error: BaseException, asked: list[str], inner: bool
) -> None:
    """It may come from another host's end; then this process ends with that. A person's interrupt does not wait."""
    watch = Watch()
    with pytest.raises(type(error)):
        program(host(watch), error, inner=inner)
    assert watch.asked == asked


def test_hosts_leave_together_at_the_end_of_the_run() -> None:
    watch: Any = Watch()
    with Hosts(watch=watch):
        assert watch.asked == []
    assert watch.asked == ["leave"]


def test_a_host_that_comes_to_the_end_alone_does_not_leave() -> None:
    watch = Watch()
    with pytest.raises(HostError, match="host 0 of 2 did not answer 'the end of the run'"), host(watch):
        pass
    assert [said.split(":")[0] for said in watch.asked] == ["fail"]
    assert "did not answer 'the end of the run' within 0.1 s" in watch.asked[0]


def test_a_log_is_told_of_ends_by_the_watch_alone() -> None:
    watch = Watch()
    host(watch).log_failures(print)
    assert watch.log is print
    Hosts().log_failures(print)


def test_a_value_that_is_announced_twice_is_of_two_hosts_with_one_index() -> None:
    store = MemoryStore()
    Hosts(0, 2, store=store).agree(1, "seed")
    with pytest.raises(HostError, match="host 0 of 2: 'seed' was announced before; is another host's index the same?"):
        Hosts(0, 2, store=store).agree(1, "seed")
