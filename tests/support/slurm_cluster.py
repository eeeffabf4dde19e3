"""A SLURM of three nodes on this machine: a controller and three slurmd's, in a folder of their own."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from serving_bridge.processes import free_port

NODES = ("n1", "n2", "n3")
_PROGRAMS = ("slurmctld", "slurmd", "sbatch", "munged")
_CONFIG = """\
ClusterName=weir
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
ProctrackType=proctrack/pgid
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=bf_interval=1,bf_continue
SlurmdParameters=config_overrides
ReturnToService=2
SlurmdTimeout={slurmd_timeout_s}
KillWait=10
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
NodeName=n[1-3] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{first}-{last}] CPUs=4 RealMemory=4000 State=UNKNOWN
PartitionName=main Nodes=n[1-3] Default=YES MaxTime=INFINITE State=UP OverSubscribe=YES
"""


def why_not() -> str:
    """Why no cluster can be had here; empty if one can."""
    missing = [name for name in _PROGRAMS if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") is None]
    if missing:
        return f"{', '.join(missing)} not installed (Debian's slurm-wlm and munge)"
    return "" if os.geteuid() == 0 else "slurmd has to be started by root here"


@dataclass(frozen=True)
class SlurmCluster:
    """A running cluster; its commands need `SLURM_CONF` in their environment."""

    folder: Path

    @property
    def config(self) -> Path:
        return self.folder / "slurm.conf"

    def ask(self, *command: str) -> str:
        done = subprocess.run(
            command,
            env=os.environ | {"SLURM_CONF": str(self.config)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout.strip()

    def ask_about(self, script: str) -> str:
        """What sbatch says of a script that is only tested."""
        command = ["sbatch", "--test-only"]
        environment = os.environ | {"SLURM_CONF": str(self.config)}
        done = subprocess.run(
            command, input=script, env=environment, capture_output=True, text=True, timeout=60, check=False
        )
        return done.stdout + done.stderr

    def start_node(self, node: str) -> None:
        subprocess.run(["/usr/sbin/slurmd", "-N", node, "-f", str(self.config)], check=True, timeout=60)

    def kill_node(self, node: str) -> None:
        """SIGKILL to the node's slurmd; what it started lives on."""
        os.kill(int((self.folder / f"{node}.pid").read_text()), signal.SIGKILL)

    def lose(self, processes: Collection[int]) -> None:
        """SIGKILL to every slurmd, to the slurmstepds above these processes, and to the processes: as machines that
        lose power, since nothing reports an end."""
        for node in NODES:
            self.kill_node(node)
        daemons = {above for process in processes for above in _ancestors(process) if _name(above) == "slurmstepd"}
        for process in [*daemons, *processes]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)


def _ancestors(process: int) -> Iterator[int]:
    """The processes above one, the nearest first."""
    while process > 1:
        try:
            # pid (name) state parent ...: a name may hold blanks and brackets
            process = int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            return
        yield process


def _name(process: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{process}/comm").read_text().strip()
    return ""


@contextmanager
def running_cluster(folder: Path, *, slurmd_timeout_s: int = 30) -> Iterator[SlurmCluster]:
    """Starts the cluster, waits until its nodes are idle, and ends it."""
    cluster = SlurmCluster(folder)
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    port = free_port(1 + len(NODES))
    cluster.config.write_text(
        _CONFIG.format(
            host=socket.gethostname(),
            folder=folder,
            port=port,
            first=port + 1,
            last=port + len(NODES),
            slurmd_timeout_s=slurmd_timeout_s,
        )
    )
    munge = _start_munge(folder)
    try:
        subprocess.run(["/usr/sbin/slurmctld", "-f", str(cluster.config)], check=True, timeout=60)
        for node in NODES:
            cluster.start_node(node)
        _wait(lambda: cluster.ask("sinfo", "--noheader", "--format=%D %T") == "3 idle", "three idle nodes")
        yield cluster
    finally:
        with contextlib.suppress(AssertionError, subprocess.TimeoutExpired):
            cluster.ask("scancel", "--user=root", "--full")
            _wait(lambda: not cluster.ask("squeue", "--noheader"), "the end of all jobs")
        for name in (*NODES, "slurmctld"):
            with contextlib.suppress(OSError, ValueError):
                os.kill(int((folder / f"{name}.pid").read_text()), signal.SIGTERM)
        munge.terminate()
        munge.wait(30)


def _start_munge(folder: Path) -> subprocess.Popen[bytes]:
    """A munged of our own, whose key and socket lie in the folder."""
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    command = ["/usr/sbin/munged", "--foreground", "--force", f"--key-file={key}", f"--socket={folder}/munge.socket"]
    command += [f"--{name}-file={folder}/munge.{name}" for name in ("pid", "seed", "log")]
    munge = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _wait((folder / "munge.socket").exists, "munged's socket")
    return munge


def _wait(condition, what: str, *, timeout_s: float = 60.0) -> None:  # type: ignore[no-untyped-def]
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come within {timeout_s:g} s"
        time.sleep(0.2)
