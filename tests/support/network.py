"""Several machines' network on one: network namespaces around a switch, whose cables tests can cut."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

#: Of the range for benchmarks of networks (RFC 2544), which nothing here routes.
_SUBNET = "198.18.77"
_NOBODY = "02:00:00:00:00:99"


class Network:
    """`count` hosts with an address each; made by `network`."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._name = f"weir{os.getpid()}"

    def address(self, host: int) -> str:
        return f"{_SUBNET}.{host + 1}"

    def namespace(self, host: int) -> str:
        """Name of the network namespace that is that host."""
        return f"{self._name}-{host}"

    def build(self) -> None:
        switch = f"{self._name}-s"
        _ip("netns", "add", switch)
        _ip("-n", switch, "link", "add", "switch", "type", "bridge")
        _ip("-n", switch, "link", "set", "switch", "up")
        for host in range(self.count):
            namespace = f"{self._name}-{host}"
            _ip("netns", "add", namespace)
            _ip("-n", namespace, "link", "set", "lo", "up")
            _ip("-n", switch, "link", "add", f"cable{host}", "type", "veth", "peer", "name", "eth0", "netns", namespace)
            _ip("-n", switch, "link", "set", f"cable{host}", "master", "switch", "up")
            _ip("-n", namespace, "addr", "add", f"{self.address(host)}/24", "dev", "eth0")
            _ip("-n", namespace, "link", "set", "eth0", "up")

    def cut(self, host: int) -> None:
        """Pulls a host's cable: nothing reaches it, and it reaches nobody."""
        _ip("-n", f"{self._name}-s", "link", "set", f"cable{host}", "down")

    def cut_between(self, one: int, other: int) -> None:
        """What these two send each other is lost; all others reach both."""
        for host, peer in ((one, other), (other, one)):
            namespace = f"{self._name}-{host}"
            command = ["neigh", "replace", self.address(peer), "lladdr", _NOBODY, "dev", "eth0", "nud", "permanent"]
            _ip("-n", namespace, *command)

    def remove(self) -> None:
        for name in [*map(str, range(self.count)), "s"]:
            subprocess.run(["ip", "netns", "del", f"{self._name}-{name}"], check=False, capture_output=True)


@contextmanager
def network(count: int) -> Iterator[Network]:
    """Skips the test where this system lets us make none."""
    made = Network(count)
    try:
        try:
            made.build()
        except (OSError, subprocess.CalledProcessError) as error:
            reason = error.stderr.decode().strip() if isinstance(error, subprocess.CalledProcessError) else error
            pytest.skip(f"network namespaces need root and iproute2: {reason}")
        yield made
    finally:
        made.remove()


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, timeout=30)
