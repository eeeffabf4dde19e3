"""The engine as a fork of vLLM's API server: it need not import anew what that one has imported."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import stat
from contextlib import suppress
from typing import Any


def fork_the_engine() -> None:
    """Has vLLM's API server fork its engine, where that is safe; harmless when called again.

    It is safe while a process computes in one thread: OpenMP's threads do not survive a fork.
    """
    import vllm.v1.engine.utils as engine_utils

    stock = getattr(engine_utils, "get_mp_context", None)
    if stock is None or stock is _fork_context or os.environ.get("OMP_NUM_THREADS") != "1":
        return
    engine_utils.get_mp_context = _fork_context


def _fork_context() -> Any:
    return _Context()


class _Context(multiprocessing.context.ForkContext):
    """Starts processes that keep nothing of the server by which it could be disturbed."""

    class Process(multiprocessing.context.ForkProcess):
        def run(self) -> None:
            leave_the_server()
            super().run()


def leave_the_server() -> None:
    """In the child: its signals wake no loop but its own, and the server's port is closed when the server ends."""
    signal.set_wakeup_fd(-1)
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in _network_sockets():
        os.dup2(nothing, descriptor)  # not closed: the server's objects, here too, would close the number's next owner
    os.close(nothing)


def _network_sockets() -> list[int]:
    found = []
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # of the listing itself
            descriptor = int(name)
            if stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                copy = socket.socket(fileno=os.dup(descriptor))
                if copy.family in (socket.AF_INET, socket.AF_INET6):
                    found.append(descriptor)
                copy.close()
    return found
