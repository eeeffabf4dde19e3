"""The guard: nothing it started outlives its supervisor, however that ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from serving_bridge.processes.guard import GuardedProcess, GuardError
from tests.conftest import REPOSITORY

GUARD = REPOSITORY / "serving_bridge" / "processes" / "guard.py"

# A parent, a child in another session that ignores SIGTERM, and a grandchild that detached by a double fork.
TREE = """
import os, signal, subprocess, sys, time
folder = sys.argv[1]
def note(name):
    with open(os.path.join(folder, name + ".tmp"), "w") as file: file.write(str(os.getpid()))
    os.rename(os.path.join(folder, name + ".tmp"), os.path.join(folder, name))
if os.fork() == 0:
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    note("stubborn")
    while True: time.sleep(60)
if os.fork() == 0:
    if os.fork() == 0:
        os.setsid()
        note("detached")
        while True: time.sleep(60)
    os._exit(0)
os.wait()
def stop(*_):
    note("asked")
    if "--obey" in sys.argv: sys.exit(7)
signal.signal(signal.SIGTERM, stop)
note("parent")
if "--crash" in sys.argv:
    while not os.path.exists(os.path.join(folder, "stubborn")) or not os.path.exists(os.path.join(folder, "detached")):
        time.sleep(0.01)
    sys.exit(3)
while True: time.sleep(60)
"""
NAMES = ("parent", "stubborn", "detached")
#: longer than anything here takes on a busy machine
LONG_S = 120.0


def wait_for(condition: Callable[[], bool], timeout_s: float = LONG_S) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "condition did not come true in time"
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def tree_pids(folder: Path) -> list[int]:
    wait_for(lambda: all((folder / name).exists() for name in NAMES))
    pids = [int((folder / name).read_text()) for name in NAMES]
    assert all(is_alive(pid) for pid in pids)
    return pids


def start(folder: Path, *flags: str, grace_s: float = 0.5) -> GuardedProcess:
    command = [sys.executable, "-c", TREE, str(folder), *flags]
    return GuardedProcess(command, env=dict(os.environ), log_path=folder / "log", grace_s=grace_s)


def test_terminate_asks_first_then_ends_every_descendant(tmp_path: Path):
    grace_s = 60.0
    process = start(tmp_path, "--obey", grace_s=grace_s)
    pids = tree_pids(tmp_path)
    assert process.poll() is None
    started = time.monotonic()
    process.terminate()
    assert process.wait(LONG_S) == 7
    assert time.monotonic() - started < grace_s
    assert (tmp_path / "asked").exists()
    assert not any(is_alive(pid) for pid in [*pids, process.pid])
    assert process.poll() == 7


def test_a_command_that_ignores_terminate_is_killed_after_the_grace_period(tmp_path: Path):
    process = start(tmp_path, grace_s=0.5)
    pids = tree_pids(tmp_path)
    started = time.monotonic()
    process.terminate()
    assert process.wait(LONG_S) == 128 + signal.SIGKILL
    assert time.monotonic() - started >= 0.5
    assert (tmp_path / "asked").exists()
    assert not any(is_alive(pid) for pid in pids)


def test_kill_does_not_ask(tmp_path: Path):
    process = start(tmp_path, grace_s=60.0)
    pids = tree_pids(tmp_path)
    process.kill()
    assert process.wait(LONG_S) == 128 + signal.SIGKILL
    assert not (tmp_path / "asked").exists()
    assert not any(is_alive(pid) for pid in pids)


def test_what_a_crashed_command_leaves_behind_is_ended_and_its_status_kept(tmp_path: Path):
    process = start(tmp_path, "--crash", grace_s=60.0)  # of which what is left behind gets two seconds
    wait_for(lambda: all((tmp_path / name).exists() for name in NAMES))
    assert process.wait(LONG_S) == 3
    assert not any(is_alive(int((tmp_path / name).read_text())) for name in NAMES)


SUPERVISOR = """
import os, subprocess, sys, time
from serving_bridge.processes.guard import GuardedProcess
tree, folder = sys.argv[1:3]
command = [sys.executable, "-c", tree, folder]
process = GuardedProcess(command, env=dict(os.environ), log_path=folder + "/log", grace_s=0.5)
if "--fork" in sys.argv and os.fork() == 0:  # a fork that inherits the lifeline's writing end and outlives us
    open(folder + "/fork", "w").write(str(os.getpid()))
    time.sleep(30)
    os._exit(0)
open(folder + "/guard", "w").write(str(process.pid))
time.sleep(60)
"""


@pytest.mark.parametrize("flag", ["", "--fork"])
def test_kill_9_of_the_supervisor_ends_the_tree(tmp_path: Path, flag: str):
    supervisor = subprocess.Popen([sys.executable, "-c", SUPERVISOR, TREE, str(tmp_path), flag])
    try:
        pids = tree_pids(tmp_path)
        wait_for(lambda: (tmp_path / "guard").exists() and (tmp_path / "guard").read_text() != "")
        if flag:
            wait_for(lambda: (tmp_path / "fork").exists() and (tmp_path / "fork").read_text() != "")
    finally:
        supervisor.kill()
        supervisor.wait()
    guard = int((tmp_path / "guard").read_text())
    wait_for(lambda: not any(is_alive(pid) for pid in [*pids, guard]))
    assert (tmp_path / "asked").exists()
    if flag:
        fork = int((tmp_path / "fork").read_text())
        assert is_alive(fork)
        os.kill(fork, signal.SIGKILL)


def test_kill_9_of_the_guard_is_noticed_and_the_tree_ended(tmp_path: Path):
    process = start(tmp_path)
    pids = tree_pids(tmp_path)
    os.kill(process.pid, signal.SIGKILL)
    wait_for(lambda: process.poll() is not None)
    assert process.poll() == 128 + signal.SIGKILL
    assert not any(is_alive(pid) for pid in pids)


# As vLLM's engine core: a process in the same session whose title is set.
RENAMED = """
import os, sys, time
import setproctitle
if os.fork() == 0:
    setproctitle.setproctitle("VLLM::EngineCore " + "x" * 100)
    with open(sys.argv[1] + ".tmp", "w") as file: file.write(str(os.getpid()))
    os.rename(sys.argv[1] + ".tmp", sys.argv[1])
time.sleep(60)
"""


def test_kill_9_of_the_guard_ends_a_process_that_named_itself(tmp_path: Path):
    pytest.importorskip("setproctitle")
    noted = tmp_path / "renamed"
    command = [sys.executable, "-c", RENAMED, str(noted)]
    process = GuardedProcess(command, env=dict(os.environ), log_path=tmp_path / "log", grace_s=0.5)
    wait_for(noted.exists)
    renamed = int(noted.read_text())
    assert b"VLLM::EngineCore" in Path(f"/proc/{renamed}/cmdline").read_bytes()
    os.kill(process.pid, signal.SIGKILL)
    wait_for(lambda: process.poll() is not None)
    assert not is_alive(renamed)


def test_a_guard_survives_the_thread_that_started_it(tmp_path: Path):
    processes: list[GuardedProcess] = []

    def start_and_see() -> None:
        processes.append(start(tmp_path))
        tree_pids(tmp_path)

    thread = threading.Thread(target=start_and_see)
    thread.start()
    thread.join()
    pids = tree_pids(tmp_path)
    time.sleep(1.2)  # longer than the guard's own look at its parent
    assert processes[0].poll() is None
    assert all(is_alive(pid) for pid in pids)
    processes[0].kill()
    processes[0].wait(LONG_S)
    assert not any(is_alive(pid) for pid in pids)


def test_ctrl_c_on_the_command_line_ends_the_tree(tmp_path: Path):
    guard = subprocess.Popen(
        [sys.executable, str(GUARD), "--grace", "0.5", "--", sys.executable, "-c", TREE, str(tmp_path)],
        start_new_session=True,
    )
    pids = tree_pids(tmp_path)
    os.killpg(guard.pid, signal.SIGINT)
    assert guard.wait(LONG_S) == 128 + signal.SIGKILL
    assert not any(is_alive(pid) for pid in pids)


def test_exit_status_and_output_come_through(tmp_path: Path):
    command = [sys.executable, "-c", "import os, sys; print(os.environ['WORD']); sys.exit(5)"]
    process = GuardedProcess(command, env={**os.environ, "WORD": "spoken"}, log_path=tmp_path / "log", grace_s=1.0)
    assert process.wait(LONG_S) == 5
    assert (tmp_path / "log").read_text() == "spoken\n"


def test_a_command_that_does_not_exist_is_said_in_the_log(tmp_path: Path):
    process = GuardedProcess(["/no/such/program"], env=dict(os.environ), log_path=tmp_path / "log", grace_s=1.0)
    assert process.wait(LONG_S) == 127
    assert "can't start /no/such/program" in (tmp_path / "log").read_text()


def test_wait_is_bounded(tmp_path: Path):
    process = start(tmp_path)
    tree_pids(tmp_path)
    with pytest.raises(GuardError, match=r"did not end within 0.1 s"):
        process.wait(0.1)
    process.kill()
    process.wait(LONG_S)
