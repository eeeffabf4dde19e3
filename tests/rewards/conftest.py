"""Sandboxes for the tests of a process: started once, and closed with nothing left."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import pytest

from rewards.code.sandbox import SandboxError, SandboxPool, open_pool


def _is_box(process: psutil.Process, sandbox: str) -> bool:
    """Whether it is such a sandbox, or runs in one: other tests of this session have children of their own."""
    try:
        words = process.cmdline()
    except psutil.NoSuchProcess:
        return False
    if sandbox == "runsc":
        return any("runsc" in word for word in words)
    return any("bwrap" in word for word in words) or words[:1] == ["/usr/bin/python3"]


@pytest.fixture(scope="session")
def pool() -> Iterator[SandboxPool]:
    with _opened("bubblewrap") as pool:
        yield pool


@pytest.fixture(scope="session")
def runsc_pool() -> Iterator[SandboxPool]:
    """Under gVisor, where it is installed."""
    with _opened("runsc") as pool:
        yield pool


@contextmanager
def _opened(sandbox: str) -> Iterator[SandboxPool]:
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    try:
        pool = open_pool(num_workers=2, sandbox=sandbox)
    except SandboxError as error:
        pytest.skip(f"no sandbox on this machine: {error}")
    yield pool
    pool.close()
    left = [
        child
        for child in psutil.Process().children(recursive=True)
        if child.pid not in before and _is_box(child, sandbox)
    ]
    assert not left, f"processes that a closed pool left: {left}"
