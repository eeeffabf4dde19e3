"""Forks Python programs from a process that has imported already: python -m tests.support.fork_server FD MODULE ...

Importing JAX, Flax and Orbax takes seconds, a fork takes milliseconds. The imports must start no thread and no backend
of JAX. A fork keeps Python's hash seed and what modules made at their import; tests about those start anew.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import gc
import importlib
import json
import os
import runpy
import selectors
import socket
import struct
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

#: What the client reads twice: the child's process id, and its status as `waitpid` gives it.
NUMBER = struct.Struct("i")
#: Of a request, whose largest part is the environment.
MAX_BYTES = 1 << 20

_CLONE_NEWNET = 0x40000000


@dataclasses.dataclass(frozen=True)
class Request:
    """One program, as python -m would run it.

    Attributes:
      module: run as `__main__`, with these arguments.
      namespace: name of the network that the process is put into; empty for this one's own.
    """

    module: str
    arguments: Sequence[str]
    cwd: str
    environment: dict[str, str]
    namespace: str

    def run(self) -> None:
        """Runs it in this process, whose output was directed already."""
        if self.namespace:
            _enter(Path("/var/run/netns") / self.namespace)
        os.chdir(self.cwd)
        os.environ.clear()
        os.environ.update(self.environment)
        tempfile.tempdir = None
        sys.argv[1:] = self.arguments
        runpy.run_module(self.module, run_name="__main__", alter_sys=True)


class Server:
    """Forks what it is asked for, and tells each client of its process's end."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._selector = selectors.DefaultSelector()
        self._selector.register(control, selectors.EVENT_READ)
        self._children: dict[int, tuple[int, int]] = {}  # pidfd -> process id, where its status is written

    def serve(self) -> Request | None:
        """Returns in every child, with what that one is to run; None in this process, once the client has gone."""
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is not self._control:
                    self._ended(key.fd)
                    continue
                message, descriptors, _, _ = socket.recv_fds(self._control, MAX_BYTES, 2)
                if not message:
                    return None
                if self._fork(*descriptors):
                    return Request(**json.loads(message))

    def _fork(self, output: int, status: int) -> bool:
        """Whether this is the child."""
        if process := os.fork():
            os.close(output)
            os.write(status, NUMBER.pack(process))
            pidfd = os.pidfd_open(process)
            self._children[pidfd] = process, status
            self._selector.register(pidfd, selectors.EVENT_READ)
            return False
        os.dup2(output, 1)
        os.dup2(output, 2)
        self._selector.close()
        self._control.close()
        for descriptor in (output, status, *self._children, *(status for _, status in self._children.values())):
            os.close(descriptor)
        return True

    def _ended(self, pidfd: int) -> None:
        self._selector.unregister(pidfd)
        process, status = self._children.pop(pidfd)
        _, how = os.waitpid(process, 0)
        with contextlib.suppress(BrokenPipeError):  # nobody asks any more
            os.write(status, NUMBER.pack(how))
        os.close(status)
        os.close(pidfd)


def _enter(network: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = os.open(network, os.O_RDONLY)
    if libc.setns(descriptor, _CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(network))
    os.close(descriptor)


def _import(modules: Sequence[str]) -> None:
    """Has all that these programs import; they themselves are run anew in each child."""
    for name in modules:
        importlib.import_module(name)
        del sys.modules[name]
    threads = len(os.listdir("/proc/self/task"))
    if threads != 1:
        raise RuntimeError(f"{threads} threads run after importing {', '.join(modules)}, expected one: a fork has one")
    gc.collect()
    gc.freeze()  # so that a child's collector does not copy every page


def main() -> None:
    _import(sys.argv[2:])
    with socket.socket(fileno=int(sys.argv[1])) as control:
        request = Server(control).serve()
    if request is not None:
        request.run()


if __name__ == "__main__":
    main()
