"""The TCP sockets of other processes, as the kernel lists them."""

from __future__ import annotations

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
