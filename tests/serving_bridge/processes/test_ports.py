"""Ports for servers that bind theirs later: free, outside the kernel's own range, in a row."""

from __future__ import annotations

import socket
from contextlib import ExitStack
from pathlib import Path

import pytest

from serving_bridge.processes import free_port

HOST = "127.0.0.1"


def kernel_range(folder: Path, text: str) -> Path:
    path = folder / "range"
    path.write_text(text)
    return path


def test_a_port_is_outside_the_kernels_range(tmp_path: Path) -> None:
    given = kernel_range(tmp_path, "10200\t65500\n")
    found = {free_port(host=HOST, kernel_range=given) for _ in range(100)}
    assert len(found) > 10
    assert all(10_000 <= port < 10_200 or 65_500 < port <= 65_535 for port in found)


def test_ports_in_a_row_are_all_free_and_none_is_in_the_kernels_range(tmp_path: Path) -> None:
    given = kernel_range(tmp_path, "10010\t65535\n")
    for _ in range(20):
        first = free_port(5, host=HOST, kernel_range=given)
        assert 10_000 <= first <= 10_005
        with ExitStack() as stack:
            for port in range(first, first + 5):
                stack.enter_context(socket.socket()).bind((HOST, port))


def test_a_port_that_is_taken_is_left_out(tmp_path: Path) -> None:
    given = kernel_range(tmp_path, "10002\t65535\n")
    free = [free_port(host=HOST, kernel_range=given) for _ in range(30)]
    assert set(free) == {10_000, 10_001}
    with socket.socket() as taken:
        taken.bind((HOST, 10_000))
        assert {free_port(host=HOST, kernel_range=given) for _ in range(30)} == {10_001}
        with pytest.raises(OSError, match=r"2 free ports in a row were not found at 127\.0\.0\.1: name the port"):
            free_port(2, host=HOST, kernel_range=given)


@pytest.mark.parametrize("text", ["1024\t65535\n", "what\n", ""])
def test_a_kernel_that_takes_all_ports_or_tells_none_still_gives_one(text: str, tmp_path: Path) -> None:
    port = free_port(host=HOST, kernel_range=kernel_range(tmp_path, text))
    with socket.create_server((HOST, port)):
        pass
    with socket.create_server((HOST, free_port(host=HOST, kernel_range=tmp_path / "missing"))):
        pass


def test_an_address_of_version_6() -> None:
    if not socket.has_ipv6:
        pytest.skip("no IPv6")
    with socket.create_server(("::1", free_port(host="::1")), family=socket.AF_INET6):
        pass
