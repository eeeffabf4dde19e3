"""Every process collects the same tests: processes that share a run refuse to start otherwise."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from tests.conftest import REPOSITORY


def collected(hash_seed: str) -> list[str]:
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider"],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ran.returncode == 0, ran.stdout[-2000:]
    return [line for line in ran.stdout.splitlines() if "::" in line]


@pytest.mark.soak
def test_ids_depend_neither_on_the_time_nor_on_the_order_of_sets() -> None:
    first = collected("1")
    time.sleep(1.1)  # an id made from a time in seconds differs
    assert len(first) > 5000
    assert collected("2") == first
