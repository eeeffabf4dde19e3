"""Hosts that watch each other: who is refused at start, and what each says, in time, when another one ends."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from learner_jax.hosts.peers import END_WITHIN_S
from learner_jax.hosts.roll_call import parse_address
from learner_jax.hosts.wire import HostError
from learner_jax.loop.host_facts import code_facts, environment_facts, flat, folder_facts
from serving_bridge.processes import free_port
from tests.conftest import REPOSITORY
from tests.support.forked_python import HOST_JAX, Program, start_python
from tests.support.network import network
from tests.support.tcp_sockets import LISTENING, sockets

HEARTBEAT_S = 3.0
#: Nothing may depend on how fast a crowded machine is; hosts that tell nothing hang for ten minutes.
PATIENCE_S = 90.0


class Group:
    """Hosts without JAX, each a process.

    Args:
      changes: what single hosts are told otherwise.
      namespace: name of the network namespace that each host runs in.
      anew: as `forked_python.start_python`.
    """

    def __init__(
        self,
        directory: Path,
        count: int,
        *,
        coordinator: str = "",
        changes: dict[int, dict[str, Any]] | None = None,
        start: Sequence[int] | None = None,
        namespace: Callable[[int], str] = lambda place: "",
        anew: bool = False,
        **told: Any,
    ) -> None:
        self.coordinator = coordinator or f"127.0.0.1:{free_port()}"
        self.running: dict[int, Program] = {}
        self._outputs: dict[int, Path] = {}
        for place in range(count) if start is None else start:
            spec = {
                "index": place,
                "count": count,
                "coordinator": self.coordinator,
                "heartbeat_s": HEARTBEAT_S,
                "timeout_s": 60,
                "then": "hang",
            }
            spec |= told | (changes or {}).get(place, {})
            self._outputs[place] = directory / f"host-{place}.txt"
            with self._outputs[place].open("wb") as output:
                self.running[place] = start_python(
                    "tests.support.watch_process",
                    [json.dumps(spec)],
                    cwd=REPOSITORY,
                    environment=os.environ | HOST_JAX | {"TMPDIR": str(directory)},
                    output=output,
                    namespace=namespace(place),
                    anew=anew,
                )

    def output(self, place: int) -> str:
        return self._outputs[place].read_text(errors="replace")

    def joined(self) -> None:
        """Waits until all have joined."""
        self.said("joined")

    def said(self, text: str, *places: int) -> None:
        """Waits until these hosts, or all that run, have said something."""
        deadline = time.monotonic() + PATIENCE_S
        while not all(text in self.output(place) for place in places or self.running):
            assert time.monotonic() < deadline, self.outputs()
            assert all(process.poll() is None for process in self.running.values()), self.outputs()
            time.sleep(0.05)

    def ended(self, *places: int) -> dict[int, str]:
        """The last line of each of these hosts, which all must end with status 1."""
        deadline = time.monotonic() + PATIENCE_S
        for place in places:
            status = self.running[place].wait(max(0.1, deadline - time.monotonic()))
            assert status == 1, self.outputs()
        return {place: self.output(place).strip().splitlines()[-1] for place in places}

    def outputs(self) -> str:
        return "\n".join(f"{place}: {self.output(place)}" for place in self.running)

    def end(self) -> None:
        for process in self.running.values():
            process.kill()
            process.wait()


@contextmanager
def group(directory: Path, count: int, **told: Any) -> Iterator[Group]:
    hosts = Group(directory, count, **told)
    try:
        yield hosts
    finally:
        hosts.end()


# Joining.


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {2: {"count": 4}},
            r"hosts disagree on how many they are: learner\.hosts\.count is 3 on host 0 and 4 on host 2",
        ),
        (
            {2: {"index": 1}},
            r"2 processes have index 1 \(at 127\.0\.0\.1, at 127\.0\.0\.1\): give each its own learner",
        ),
        ({2: {"index": 0}}, r"2 processes have index 0 \(where host 0 is, at 127\.0\.0\.1\)"),
        (
            {1: {"facts": {"settings": {"learner.steps": "6", "run.seed": "1"}}}},
            r"hosts disagree on settings: learner\.steps is 5 on host 0 and 6 on host 1, run\.seed is missing on",
        ),
        ({2: {"facts": {}}}, r"hosts disagree on settings: learner\.steps is 5 on host 0 and missing on host 2"),
    ],
)
def test_hosts_that_disagree_are_all_told_the_same(
    changes: dict[int, dict[str, Any]], message: str, tmp_path: Path
) -> None:
    with group(tmp_path, 3, changes=changes, facts={"settings": {"learner.steps": "5"}}) as hosts:
        said = set(hosts.ended(0, 1, 2).values())
    assert len(said) == 1
    assert re.search("refused: " + message, said.pop())


def test_hosts_that_never_came_are_named_on_all_that_did(tmp_path: Path) -> None:
    with group(tmp_path, 4, start=[0, 2], timeout_s=3) as hosts:
        said = set(hosts.ended(0, 2).values())
    (message,) = said
    assert re.search(r"not all 4 hosts joined at 127\.0\.0\.1:\d+ within 3 s .*: hosts 1, 3 did not come", message)


def test_a_host_that_ends_while_the_others_join_is_named_at_once(tmp_path: Path) -> None:
    with group(tmp_path, 3, start=[0, 1], timeout_s=600) as hosts:
        hosts.said("asks", 1)
        hosts.running[1].kill()
        assert "refused: host 1 ended while the hosts were joining" in hosts.ended(0)[0]


def test_a_coordinator_that_is_no_address_of_host_0_is_refused(tmp_path: Path) -> None:
    with group(tmp_path, 2, start=[0], coordinator="192.0.2.7:4000", timeout_s=3) as hosts:
        assert re.search(r"host 0 can't listen at 192\.0\.2\.7:4000 \(learner\.hosts\.coordinator\)", hosts.ended(0)[0])


def test_a_port_that_something_else_holds_is_refused(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        with group(tmp_path, 2, coordinator=address, timeout_s=3) as hosts:
            said = hosts.ended(0, 1)
    assert re.search(r"can't listen at .*[Aa]ddress.*in use", said[0])
    assert "host 0 could not be reached" in said[1]


def test_a_host_that_starts_again_beside_a_running_group_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    with group(tmp_path, 2, then="settle") as hosts:
        hosts.joined()
        (tmp_path / "again").mkdir()
        with group(tmp_path / "again", 2, start=[1], coordinator=hosts.coordinator) as again:
            assert "have come already" in again.ended(1)[1]
        hosts.said("all alive")
        assert all(process.poll() is None for process in hosts.running.values())


@pytest.mark.parametrize(
    "text", ["", "host", "host:", ":1", "host:0", "host:70000", "host:x", "::1", "http://host:80/", "host:-1"]
)
def test_addresses_that_are_none_are_refused(text: str) -> None:
    if text in ("::1", "http://host:80/"):  # they do parse as a host and a port, or not at all
        with pytest.raises(HostError, match="expected ADDRESS:PORT"):
            parse_address(text + "/")
        return
    with pytest.raises(HostError, match="expected ADDRESS:PORT"):
        parse_address(text)


def test_addresses_of_both_families_are_read() -> None:
    assert parse_address("trainer-0.pool:1234") == ("trainer-0.pool", 1234)
    assert parse_address("[fd00::7]:1234") == ("fd00::7", 1234)


# Strangers.


def attack(address: tuple[str, int]) -> None:
    """What a stranger may send who reaches the port."""
    frames = [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"weir-hosts-1\n",
        b"weir-hosts-1\n\xff\xff\xff\xff" + b"x" * 100,
        b"weir-hosts-1\n\x00\x00\x00\x05nonse",
        b"weir-hosts-1\n\x00\x00\x00\x00",
        os.urandom(4096),
    ]
    for frame in frames:
        with socket.create_connection(address, timeout=10) as stranger:
            stranger.sendall(frame)
    idle = [socket.create_connection(address, timeout=10) for _ in range(50)]
    for stranger in idle:
        stranger.close()


@pytest.mark.parametrize("secret", ["", "of this learner"])
def test_strangers_change_nothing_while_hosts_join_and_afterwards(secret: str, tmp_path: Path) -> None:
    with group(tmp_path, 2, start=[0], secret=secret) as leader:
        address = parse_address(leader.coordinator)
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                attack(address)
                break
            except ConnectionRefusedError:
                assert time.monotonic() < deadline
        told: dict[str, Any] = {"coordinator": leader.coordinator, "secret": secret}
        (tmp_path / "1").mkdir()
        with group(tmp_path / "1", 2, start=[1], then="settle", **told) as follower:
            follower.said("joined")
            attack(address)
            follower.said("all alive")
            assert leader.running[0].poll() is None
            assert "Traceback" not in leader.outputs() + follower.outputs()
            assert "exception" not in leader.outputs() + follower.outputs()


def test_a_host_without_the_secret_is_turned_away_and_ends_nothing(tmp_path: Path) -> None:
    with group(tmp_path, 2, changes={1: {"secret": "another"}}, secret="this one", timeout_s=6) as hosts:
        assert "WEIR_HOSTS_SECRET in the environment is not the same" in hosts.ended(1)[1]
        assert "turned away for another WEIR_HOSTS_SECRET: 127.0.0.1" in hosts.ended(0)[0]


def test_hosts_listen_at_their_own_addresses_alone_and_leave_nothing_behind(tmp_path: Path) -> None:
    with group(tmp_path, 2) as hosts:
        hosts.joined()
        for process in hosts.running.values():
            assert sockets(process.pid, LISTENING) == {"0100007F"}  # 127.0.0.1
        assert list(tmp_path.glob("weir-hosts-*")) == []


# Ends.


@pytest.mark.parametrize("victim", [0, 2])
def test_a_killed_host_is_named_by_all_others_at_once(victim: int, tmp_path: Path) -> None:
    with group(tmp_path, 4, heartbeat_s=600) as hosts:
        hosts.joined()
        hosts.running[victim].kill()
        others = [place for place in range(4) if place != victim]
        for place, line in hosts.ended(*others).items():
            assert line.startswith(f"error: host {place} of 4 stops, because host {victim} died: ")
            (record,) = (json.loads(text) for text in hosts.output(place).splitlines() if text.startswith("{"))
            assert (record["event"], record["host"]) == ("host_failed", victim)


@pytest.mark.parametrize("victim", [0, 1])
def test_a_stopped_host_is_named_in_time_and_told_when_it_goes_on(victim: int, tmp_path: Path) -> None:
    with group(tmp_path, 3) as hosts:
        hosts.joined()
        hosts.running[victim].send_signal(signal.SIGSTOP)
        started = time.monotonic()
        others = [place for place in range(3) if place != victim]
        for place, line in hosts.ended(*others).items():
            silence = rf"(it|host \d) heard nothing from host {victim} for 3 s \(learner\.hosts\.heartbeat_timeout_s\)"
            assert re.match(rf"error: host {place} of 3 stops, because {silence}", line)
        assert time.monotonic() - started < HEARTBEAT_S + END_WITHIN_S + 20
        hosts.running[victim].send_signal(signal.SIGCONT)
        assert re.search(
            rf"host {victim} of 3 stops, because (host \d gave it up: host \d heard nothing from host {victim}|host \d "
            rf"died)",
            hosts.ended(victim)[victim],
        )


def test_a_host_that_fails_is_quoted_by_all_and_ended_if_it_does_not_end(tmp_path: Path) -> None:
    with group(tmp_path, 3, changes={1: {"then": "fail"}}) as hosts:
        said = hosts.ended(0, 1, 2)
    assert said[0] == "error: host 0 of 3 stops, because host 1 failed: RuntimeError: no disk\\x1b[31m"
    assert said[2] == "error: host 2 of 3 stops, because host 1 failed: RuntimeError: no disk\\x1b[31m"
    assert said[1].startswith("error: host 1 of 3 failed: RuntimeError: no disk")


def test_hosts_that_have_finished_leave_without_a_word(tmp_path: Path) -> None:
    with group(tmp_path, 3, then="leave", anew=True) as hosts:
        for process in hosts.running.values():
            assert process.wait(PATIENCE_S) == 0, hosts.outputs()
        assert "error" not in hosts.outputs()


@pytest.mark.parametrize("victim", [0, 2])
def test_a_host_whose_cable_is_pulled_is_named_by_the_others_and_knows_it_itself(victim: int, tmp_path: Path) -> None:
    with (
        network(4) as lan,
        group(tmp_path, 4, coordinator=f"{lan.address(0)}:4000", namespace=lan.namespace) as hosts,
    ):
        hosts.joined()
        started = time.monotonic()
        lan.cut(victim)
        others = [place for place in range(4) if place != victim]
        silence = rf"(it|host \d) heard nothing from host {victim} for 3 s"
        for place, line in hosts.ended(*others).items():
            assert re.match(rf"error: host {place} of 4 stops, because {silence}", line)
        alone = rf"because it heard nothing from hosts {', '.join(map(str, others))} for 3 s .*this host was cut off"
        assert re.search(alone, hosts.ended(victim)[victim])
        assert time.monotonic() - started < HEARTBEAT_S + END_WITHIN_S + 20


def test_two_hosts_that_lose_each_other_end_all(tmp_path: Path) -> None:
    """Host 0 still hears both; a collective of all would hang for ever."""
    with (
        network(4) as lan,
        group(tmp_path, 4, coordinator=f"{lan.address(0)}:4000", namespace=lan.namespace) as hosts,
    ):
        hosts.joined()
        lan.cut_between(1, 2)
        for line in hosts.ended(0, 1, 2, 3).values():
            assert re.search(r"(host 1|host 2|it) heard nothing from host (1|2) for 3 s", line)


def test_a_host_that_cant_reach_another_is_told_of_at_start(tmp_path: Path) -> None:
    with network(3) as lan:
        lan.cut_between(1, 2)
        with group(tmp_path, 3, coordinator=f"{lan.address(0)}:4000", namespace=lan.namespace) as hosts:
            for line in hosts.ended(0, 1, 2).values():
                assert "host 2 can't reach host 1 at" in line or "heard nothing" in line


# What is compared.


def test_settings_are_compared_without_those_of_each_host() -> None:
    tree = {"run": {"directory": "/a", "seed": 1}, "learner": {"row_tokens": [1, 2], "hosts": {"index": 3, "count": 4}}}
    assert flat(tree, without=["run.directory", "learner.hosts.index"]) == {
        "run.seed": "1",
        "learner.row_tokens": "[1, 2]",
        "learner.hosts.count": "4",
    }


def test_code_and_environment_have_facts() -> None:
    facts = code_facts()
    assert {"weir", "sources", "python", "jax", "jaxlib", "orbax-checkpoint"} <= facts.keys()
    assert facts == code_facts()
    assert environment_facts({"JAX_ENABLE_X64": "1", "JAX_PROCESS_ID": "3", "HOME": "/x"}) == {"JAX_ENABLE_X64": "1"}


def test_folders_differ_by_each_file(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    large = os.urandom(17 << 20)
    (tmp_path / "model.safetensors").write_bytes(large)
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "x.json").write_text("")
    before = folder_facts(tmp_path)
    assert before.keys() == {"config.json", "model.safetensors"}
    (tmp_path / "model.safetensors").write_bytes(os.urandom(17 << 20))
    assert folder_facts(tmp_path)["model.safetensors"] != before["model.safetensors"]
    (tmp_path / "model.safetensors").write_bytes(large)
    assert folder_facts(tmp_path) == before
