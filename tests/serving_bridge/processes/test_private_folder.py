"""Folders for sockets: for this user only, removed however their processes end, and no other folder is touched."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from serving_bridge.processes.guard import GuardedProcess, GuardError
from serving_bridge.processes.private_folder import PrivateFolder, PrivateFolderError, base_folder, sweep
from tests.conftest import REPOSITORY

LONG_S = 30.0
#: leaves a socket behind, as vLLM's processes do, and stays
SERVER = "import socket, sys, time; socket.socket(socket.AF_UNIX).bind(sys.argv[1] + '/s'); time.sleep(60)"


@pytest.fixture
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Short enough for sockets."""
    return tmp_path_factory.mktemp("b")


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LONG_S
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def serve(folder: PrivateFolder, tmp_path: Path) -> GuardedProcess:
    command = [sys.executable, "-c", SERVER, str(folder.path)]
    process = GuardedProcess(command, env=dict(os.environ), log_path=tmp_path / "log", grace_s=5.0, folder=folder)
    until((folder.path / "s").exists)
    return process


def test_a_folder_is_for_its_user_only_and_gone_with_its_process(base: Path, tmp_path: Path):
    folder = PrivateFolder(base)
    assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700
    process = serve(folder, tmp_path)
    PrivateFolder(base).close()  # sweeps: what is in use stays
    assert (folder.path / "s").exists()
    process.terminate()
    process.wait(LONG_S)
    assert not folder.path.exists()


def test_a_killed_guard_leaves_no_folder(base: Path, tmp_path: Path):
    folder = PrivateFolder(base)
    process = serve(folder, tmp_path)
    os.kill(process.pid, signal.SIGKILL)
    process.wait(LONG_S)
    assert not folder.path.exists()


def test_when_supervisor_and_guard_are_killed_the_next_start_removes_the_folder(base: Path, tmp_path: Path):
    code = f"""
import os, sys
from pathlib import Path
from serving_bridge.processes.guard import GuardedProcess
from serving_bridge.processes.private_folder import PrivateFolder
folder = PrivateFolder(Path(sys.argv[1]))
command = [sys.executable, "-c", {SERVER!r}, str(folder.path)]
process = GuardedProcess(command, env=dict(os.environ), log_path=sys.argv[2], grace_s=5.0, folder=folder)
print(process.pid, folder.path, flush=True)
os.kill(os.getpid(), 19)
"""
    command = [sys.executable, "-c", code, str(base), str(tmp_path / "log")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY) as supervisor:
        assert supervisor.stdout is not None
        guard, path = supervisor.stdout.readline().split()
        until((Path(path) / "s").exists)
        os.kill(int(guard), signal.SIGSTOP)
        supervisor.kill()
        os.kill(int(guard), signal.SIGKILL)
        until(lambda: not Path(f"/proc/{guard}").exists() or "Z" in Path(f"/proc/{guard}/stat").read_text().split()[2])
    assert Path(path).exists()
    PrivateFolder(base).close()
    assert not Path(path).exists()


def test_temporary_folders_of_the_rest_of_weir_stay_though_they_are_empty(base: Path):
    others = [base / f"weir-{name}-x" for name in ("convert", "hosts", "preflight", "tests")]
    for other in others:
        other.mkdir(0o700)
    left = base / "weir-server-x"
    left.mkdir(0o700)  # of a process that was killed before it could mark it
    sweep(base)
    assert sorted(base.iterdir()) == others
    assert not left.exists()


def test_folders_of_others_and_other_things_stay(base: Path):
    (base / "weir-server-link").symlink_to("/etc")
    (base / "weir-server-file").touch()
    (base / "weir-server-open").mkdir(mode=0o755)
    (base / "weir-server-full").mkdir(mode=0o700)
    (base / "weir-server-full" / "work.txt").touch()
    stale = PrivateFolder(base)
    stale.close()
    (stale.path / "work.txt").touch()
    (base / "weir-server-empty").mkdir(mode=0o700)
    sweep(base)
    assert sorted(os.listdir(base)) == ["weir-server-file", "weir-server-full", "weir-server-link", "weir-server-open"]


def test_a_command_that_can_not_start_leaves_no_folder(base: Path, tmp_path: Path):
    folder = PrivateFolder(base)
    with pytest.raises(GuardError):
        GuardedProcess(["x"], env={}, log_path=tmp_path / "no" / "log", grace_s=1.0, folder=folder)
    assert os.listdir(base) == []
    folder = PrivateFolder(base)
    GuardedProcess(["/no/such/program"], env={}, log_path=tmp_path / "log", grace_s=1.0, folder=folder).wait(LONG_S)
    assert os.listdir(base) == []


def test_a_path_too_long_for_sockets_is_refused_with_what_to_set(tmp_path: Path):
    long = tmp_path / ("x" * 80)
    long.mkdir()
    with pytest.raises(PrivateFolderError, match="VLLM_RPC_BASE_PATH"):
        PrivateFolder(long)
    assert os.listdir(long) == []
    with pytest.raises(PrivateFolderError, match="TMPDIR"):
        PrivateFolder(tmp_path / "missing")


def test_sockets_go_where_the_user_wants_them(monkeypatch: pytest.MonkeyPatch):
    assert base_folder({"VLLM_RPC_BASE_PATH": "/run/x"}) == Path("/run/x")
