"""The program that asks in a benchmark: first on its core, as on a user's own machine; how late it was is measured."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from tools.bench.gateway.deployment import on_core

_EVERY_S = 0.01


@contextmanager
def first_on_core(core: int) -> Iterator[bool]:
    """This thread runs on one core, before all else there; what it starts is scheduled as usual.

    Yields:
      Whether it goes first; False where the system does not allow it.
    """
    policy, given = os.sched_getscheduler(0), os.sched_getparam(0)
    with on_core(core):
        try:
            os.sched_setscheduler(0, os.SCHED_RR | os.SCHED_RESET_ON_FORK, os.sched_param(1))
        except PermissionError:
            yield False
            return
        try:
            yield True
        finally:
            os.sched_setscheduler(0, policy, given)


@asynccontextmanager
async def lateness() -> AsyncIterator[list[float]]:
    """Gives a list that fills with how late the event loop was, seconds."""
    late_s: list[float] = []

    async def watch() -> None:
        while True:
            due_s = time.monotonic() + _EVERY_S
            await asyncio.sleep(_EVERY_S)
            late_s.append(max(0.0, time.monotonic() - due_s))

    task = asyncio.ensure_future(watch())
    try:
        yield late_s
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
