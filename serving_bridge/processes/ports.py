"""TCP ports for servers that bind theirs later: a port stays free until then."""

from __future__ import annotations

import contextlib
import secrets
import socket
from pathlib import Path

_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
_USUAL_RANGE = (32_768, 60_999)
_FIRST, _LAST = 10_000, 65_535
_TRIES = 1000


def free_port(in_a_row: int = 1, *, host: str = "", kernel_range: Path = _RANGE) -> int:
    """The first of so many free ports in a row.

    They lie outside the range from which the kernel serves connections and binds to port 0. So nobody else gets one by
    chance before the server binds it. Where that range leaves none, any free port is taken.

    Args:
      host: address that the server will bind; "" for all.
      kernel_range: file with the first and the last port of the kernel's range.

    Raises:
      OSError: none were found.
    """
    low, high = _kernel_ports(kernel_range)
    firsts = [*range(_FIRST, low - in_a_row + 1), *range(high + 1, _LAST - in_a_row + 2)]
    for _ in range(_TRIES):
        first = secrets.choice(
            firsts or range(_FIRST, _LAST - in_a_row + 2)
        )  # processes at the same time draw others, whatever their seeds
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            for port in range(first, first + in_a_row):
                stack.enter_context(socket.socket(_family(host))).bind((host, port))
            return first
    raise OSError(f"{in_a_row} free ports in a row were not found at {host or 'all addresses'}: name the port")


def _kernel_ports(path: Path) -> tuple[int, int]:
    try:
        low, high = map(int, path.read_text().split())
    except (OSError, ValueError):
        return _USUAL_RANGE
    return low, high


def _family(host: str) -> socket.AddressFamily:
    return socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][0] if host else socket.AF_INET
