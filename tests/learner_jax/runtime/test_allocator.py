"""Freed memory is kept for what comes next."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from types import SimpleNamespace

import pytest

from learner_jax.runtime import allocator

COUNT = """
import resource, sys
from learner_jax.runtime.allocator import keep_freed_memory
if sys.argv[1] == "kept" and not keep_freed_memory():
    print("unsupported"); raise SystemExit
def fill():
    held = [bytes(100_000) for _ in range(16)]
fill()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(50):
    fill()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str) -> str:
    done = subprocess.run([sys.executable, "-c", COUNT, how], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_buffers_of_the_size_of_payloads_are_not_faulted_in_again() -> None:
    kept, default = faults("kept"), faults("default")
    if kept != "unsupported":
        assert int(kept) < 100 < 5000 < int(default)


def test_memory_is_kept_only_where_every_option_was_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []

    def library(*takes: int) -> None:
        def mallopt(option: int, value: int) -> int:
            asked.append((option, value))
            return int(option in takes)

        monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace(mallopt=mallopt))

    trim, pad, mapped, arenas = -1, -2, -3, -8  # <malloc.h>
    library(trim, pad, mapped, arenas)
    assert allocator.keep_freed_memory()
    assert asked == [(trim, 128 * 2**20), (pad, 16 * 2**20), (mapped, 32 * 2**20)]
    asked.clear()
    assert allocator.keep_freed_chunks()
    assert asked == [(trim, 16 * 2**20), (mapped, 16 * 2**20), (arenas, 1)]
    for refused in (trim, pad, mapped):
        library(*{trim, pad, mapped} - {refused})
        assert not allocator.keep_freed_memory()
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace())
    assert not allocator.keep_freed_memory()
