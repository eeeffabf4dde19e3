"""Freed memory is kept for what comes next."""

from __future__ import annotations

import subprocess
import sys

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
