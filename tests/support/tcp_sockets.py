"""TCP ports that are free, and the sockets of other processes as the kernel lists them."""

from __future__ import annotations

import contextlib
import secrets
import socket
from pathlib import Path

ESTABLISHED, LISTENING = "01", "0A"


def sockets(pid: int, state: str) -> set[str]:
    """Local addresses of a process's TCP sockets in a state, in the kernel's writing."""
    inodes = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        try:
            target = str(descriptor.readlink())
        except OSError:
            continue
        if target.startswith("socket:["):
            inodes.add(target[8:-1])
    found = set()
    for table in ("tcp", "tcp6"):
        path = Path(f"/proc/{pid}/net/{table}")
        if not path.exists():
            continue
        for line in path.read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == state and fields[9] in inodes:
                found.add(fields[1].rpartition(":")[0])
    return found


def free_port(in_a_row: int = 1) -> int:
    """The first of so many free ports in a row.

    They lie outside the range from which the kernel serves connections and binds to port 0: until a test binds them,
    nobody else gets one by chance.

    Raises:
      AssertionError: none were found.
    """
    low, high = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    firsts = [*range(10_000, low - in_a_row + 1), *range(high + 1, 65_536 - in_a_row + 1)]
    for _ in range(1000):
        first = secrets.choice(firsts)  # tests at the same time draw others, whatever their seeds
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            for port in range(first, first + in_a_row):
                stack.enter_context(socket.socket()).bind(("", port))
            return first
    raise AssertionError("no free ports")
