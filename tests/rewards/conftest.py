"""Sandboxes for the tests of a process: started once, and closed with nothing left."""

from __future__ import annotations

from collections.abc import Iterator

import psutil
import pytest

from rewards.code.sandbox import SandboxError, SandboxPool, open_pool


def _is_box(process: psutil.Process) -> bool:
    """Whether it is a sandbox, or runs in one: other tests of this session have children of their own."""
    try:
        return any("bwrap" in part for part in process.cmdline()) or process.cmdline()[:1] == ["/usr/bin/python3"]
    except psutil.NoSuchProcess:
        return False


@pytest.fixture(scope="session")
def pool() -> Iterator[SandboxPool]:
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    try:
        pool = open_pool(num_workers=2)
    except SandboxError as error:
        pytest.skip(f"no sandbox on this machine: {error}")
    yield pool
    pool.close()
    left = [child for child in psutil.Process().children(recursive=True) if child.pid not in before and _is_box(child)]
    assert not left, f"processes that a closed pool left: {left}"
