"""How often a process looks for garbage."""

from __future__ import annotations

import gc


def collect_garbage_less_often() -> None:
    """For processes with thousands of episodes in flight: each full look at them all stops the event loop."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 50, 100)
