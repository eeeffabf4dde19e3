"""A host of a learner ends, by any means and at any point: the others say so in time, and the run goes on whole."""

from __future__ import annotations

import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from learner_jax.hosts.peers import END_WITHIN_S
from serving_bridge.queue.queue import TrajectoryQueue
from tests.support.host_processes import HEARTBEAT_S, PLAIN, Processes, fill, last_line, records
from tests.support.learner_runs import assert_same_parameters
from tests.support.network import network
from tests.support.tcp_sockets import LISTENING, sockets

SHORT = PLAIN | {"steps": 4, "checkpoint": {"every": 2, "keep": 3}}
NUM_GROUPS = 4 * 4


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two processes that nothing disturbed."""
    directory = tmp_path_factory.mktemp("two")
    fill(directory, NUM_GROUPS)
    Processes(directory, 2, settings=SHORT).finish()
    return directory


# A host's end, wherever the others are.

PROXIES = dict.fromkeys(("http_proxy", "https_proxy", "grpc_proxy", "all_proxy"), "http://127.0.0.1:9")
PROXIES |= {name.upper(): url for name, url in PROXIES.items()}


def waiting(directory: Path, count: int, place: str, *, victim: int, **more: Any) -> Processes:
    """Hosts that wait for `victim` in one place."""
    told = {"place": place, "silent": [victim], "module": "tests.support.watch_worker"}
    processes = Processes(directory, count, settings={}, num_devices=count, **told | more)
    processes.said("ready")
    return processes


def named_by_all(processes: Processes, count: int, victim: int, reason: str) -> None:
    """Every other host ends within the bound, with status 1 and our line as its last."""
    started = time.monotonic()
    for index in range(count):
        if index != victim:
            assert processes.wait_for(index, HEARTBEAT_S + END_WITHIN_S + 60) == 1, processes.output(index)
            line = last_line(processes, index)
            assert re.match(rf"error: host {index} of {count} stops, because {reason}", line), processes.output(index)
            assert "Check failure" not in processes.output(index)
            assert "Traceback" not in processes.output(index)
    assert time.monotonic() - started < HEARTBEAT_S + END_WITHIN_S + 20


@pytest.mark.parametrize("victim", [0, 1])
def test_hosts_behind_a_proxy_listen_to_themselves_alone_and_name_a_killed_one(victim: int, tmp_path: Path) -> None:
    """The survivor is in a collective; neither the coordination service nor gloo listens on other addresses."""
    processes = waiting(tmp_path, 2, "collective", victim=victim, environments={0: PROXIES, 1: PROXIES})
    try:
        for index in (0, 1):
            assert sockets(processes.pid(index), LISTENING) == {"0100007F"}  # 127.0.0.1
        processes.signal(victim, signal.SIGKILL)
        named_by_all(processes, 2, victim, f"host {victim} died: ")
    finally:
        processes.end()


def test_hosts_that_have_finished_end_well_one_after_the_other(tmp_path: Path) -> None:
    """Host 0's end closes what the others' JAX listens to, which must not abort them on their way out."""
    told = {"place": "end", "module": "tests.support.watch_worker"}
    processes = Processes(tmp_path, 2, settings={}, num_devices=2, **told)
    processes.finish()
    for index in (0, 1):
        assert last_line(processes, index) == "ready"


@pytest.mark.soak
@pytest.mark.parametrize(
    ("place", "victim", "how", "count"),
    [
        ("value", 0, "kill", 4),
        ("value", 1, "stop", 2),
        ("value", 1, "cut", 4),
        ("collective", 1, "kill", 4),
        ("collective", 0, "stop", 2),
        ("collective", 1, "stop", 4),
        ("collective", 0, "cut", 4),
        ("collective", 1, "cut", 2),
        ("barrier", 0, "kill", 2),
        ("barrier", 1, "stop", 4),
        ("barrier", 0, "cut", 2),
        ("save", 0, "kill", 2),
        ("save", 1, "kill", 4),
        ("save", 0, "stop", 4),
        ("save", 1, "cut", 2),
    ],
)
def test_a_host_s_end_is_told_wherever_the_others_are(
    place: str, victim: int, how: str, count: int, tmp_path: Path
) -> None:
    with network(count) as lan:
        more = {"coordinator": f"{lan.address(0)}:4000", "namespace": lan.namespace}
        processes = waiting(tmp_path, count, place, victim=victim, **more)
        try:
            if how == "cut":
                lan.cut(victim)
            else:
                processes.signal(victim, signal.SIGKILL if how == "kill" else signal.SIGSTOP)
            reasons = {"kill": f"host {victim} died: "}
            silence = rf"(it|host \d) heard nothing from host {victim} for {HEARTBEAT_S} s"
            named_by_all(processes, count, victim, reasons.get(how, silence))
            if how != "kill":
                processes.signal(victim, signal.SIGCONT)
                assert processes.wait_for(victim, HEARTBEAT_S + END_WITHIN_S + 60) == 1
                given_up = r"(host \d gave it up|it heard nothing from hosts? \d|host \d died)"
                assert re.search(f"stops, because {given_up}", last_line(processes, victim))
        finally:
            processes.end()


@pytest.mark.soak
def test_hosts_that_lose_each_other_in_a_collective_end(tmp_path: Path) -> None:
    with network(4) as lan:
        more = {"coordinator": f"{lan.address(0)}:4000", "namespace": lan.namespace}
        processes = waiting(tmp_path, 4, "collective", victim=3, **more)
        try:
            lan.cut_between(1, 2)
            named_by_all(processes, 4, 3, r"(host \d gave it up: )?(host 1|host 2|it) heard nothing from host (1|2)")
        finally:
            processes.end()


#: Points of the learner, each on a host that passes it; the leader alone stores, hashes and acknowledges.
CRASHES = [
    *[(0, point) for point in ("storing", "stored", "trained", "published", "saving", "hashed", "acknowledged")],
    *[(1, point) for point in ("leased", "trained", "marked", "save", "saving", "committed")],
]


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("victim", "point"), CRASHES)
def test_nothing_is_lost_or_trained_twice_where_a_host_is_killed(
    victim: int, point: str, two: Path, tmp_path: Path
) -> None:
    fill(tmp_path, NUM_GROUPS)
    crash = {victim: {"WEIR_CRASH_AT": f"{point}:2" if point != "hashed" else point}}
    killed = Processes(tmp_path, 2, settings=SHORT, environments=crash)
    assert killed.wait_for(victim) == -signal.SIGKILL
    named_by_all(killed, 2, victim, f"host {victim} died: ")
    Processes(tmp_path, 2, settings=SHORT).finish()
    assert_same_parameters(tmp_path, two)
    progress = TrajectoryQueue(tmp_path / "state.db").admin.progress()
    assert (progress.num_acknowledged, progress.completed_steps, progress.finished) == (NUM_GROUPS, 4, True)


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("victim", [0, 1])
def test_nothing_is_lost_or_trained_twice_where_a_host_is_stopped_for_a_while(
    victim: int, two: Path, tmp_path: Path
) -> None:
    """The stopped host goes on after the others were started again, and must then do nothing to the run."""
    fill(tmp_path, NUM_GROUPS)
    stopped = Processes(tmp_path, 2, settings=SHORT)
    try:
        deadline = time.monotonic() + 240
        while not records(tmp_path, 0, "checkpoint") if (tmp_path / "host-0.jsonl").exists() else True:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        stopped.signal(victim, signal.SIGSTOP)
        named_by_all(stopped, 2, victim, f"it heard nothing from host {victim}")
        again = Processes(tmp_path, 2, settings=SHORT)
        again.finish()
        stopped.signal(victim, signal.SIGCONT)
        assert stopped.wait_for(victim) == 1
        assert re.search("stops, because host . (gave it up|died)", stopped.output(victim))
    finally:
        stopped.end()
    assert_same_parameters(tmp_path, two)
    assert TrajectoryQueue(tmp_path / "state.db").admin.progress().num_acknowledged == NUM_GROUPS
