"""Python programs in processes of their own, forked from one that has imported what they need.

`start_python` forks a program, or starts it anew where the start itself is tested; both behave alike.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

from tests.conftest import REPOSITORY
from tests.support.fork_server import NUMBER, Request

#: Settings of JAX of a learner's host: what is compiled there runs for milliseconds, and is kept for its next life.
HOST_JAX = {
    "JAX_PLATFORMS": "cpu",
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
}

#: Programs whose imports the server has made.
_PROGRAMS = tuple(
    f"tests.support.{name}"
    for name in ("host_worker", "watch_worker", "watch_process", "killed_conversion", "killed_commit")
)


class ForkedPython:
    """python -W error -m MODULE ARGUMENTS, started in milliseconds; behaves as `subprocess.Popen`."""

    def __init__(self, request: Request, output: IO[bytes]) -> None:
        self._status, status = os.pipe()
        self.returncode: int | None = None
        try:
            control = _server(tuple(sorted(_read_at_import(request.environment))))
            socket.send_fds(control, [json.dumps(vars(request)).encode()], [output.fileno(), status])
        finally:
            os.close(status)
        self.pid = self._read()

    def __del__(self) -> None:
        os.close(self._status)

    def poll(self) -> int | None:
        """Its exit status, minus the signal that killed it; None while it runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Its exit status.

        Args:
          timeout: seconds.
        Raises:
          subprocess.TimeoutExpired: it runs still.
        """
        if self.returncode is None:
            poller = select.poll()
            poller.register(self._status, select.POLLIN)
            if not poller.poll(None if timeout is None else timeout * 1000):
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0)
            self.returncode = os.waitstatus_to_exitcode(self._read())
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _read(self) -> int:
        read = os.read(self._status, NUMBER.size)
        if len(read) != NUMBER.size:
            raise RuntimeError("the process that forks programs has ended; its own error is in this test's output")
        return int(NUMBER.unpack(read)[0])


Program = ForkedPython | subprocess.Popen[bytes]


def start_python(
    module: str,
    arguments: Sequence[str],
    *,
    cwd: Path,
    environment: Mapping[str, str],
    output: IO[bytes],
    namespace: str = "",
    anew: bool = False,
) -> Program:
    """python -W error -m MODULE ARGUMENTS, which finds this repository's modules wherever it runs.

    Args:
      module: what the programs of hosts import was imported beforehand.
      environment: its settings of JAX are read at import; each set of them has a server.
      output: where stdout and stderr go.
      namespace: name of the network namespace that it runs in.
      anew: by the real command, with imports, a hash seed and addresses of its own.
    """
    if not anew:
        return ForkedPython(Request(module, arguments, str(cwd), dict(environment), namespace), output)
    inside = ["ip", "netns", "exec", namespace] if namespace else []
    return subprocess.Popen(
        [*inside, sys.executable, "-W", "error", "-m", module, *arguments],
        cwd=cwd,
        env=dict(environment) | {"PYTHONPATH": str(REPOSITORY)},
        stdout=output,
        stderr=subprocess.STDOUT,
    )


def _read_at_import(environment: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Settings that JAX reads when it is imported."""
    return ((name, value) for name, value in environment.items() if name.startswith("JAX_"))


@functools.cache
def _server(settings: tuple[tuple[str, str], ...]) -> socket.socket:
    """Where the server with these settings of JAX is asked; it ends with this process."""
    own, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    others = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    with its:
        server = subprocess.Popen(
            [sys.executable, "-W", "error", "-m", "tests.support.fork_server", str(its.fileno()), *_PROGRAMS],
            pass_fds=[its.fileno()],
            cwd=REPOSITORY,
            # Threads of a library would not be in a fork.
            env=others | dict(settings) | {"OPENBLAS_NUM_THREADS": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
    atexit.register(_end, own, server)
    return own


def _end(control: socket.socket, server: subprocess.Popen[bytes]) -> None:
    control.close()
    server.wait(30)
