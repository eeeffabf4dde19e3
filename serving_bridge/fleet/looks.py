"""Tasks that look at something again and again, and wait out files that can't be read or written."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from typing import Any

from learner_jax.runtime import Waits, WeirError

Look = Callable[[], Awaitable[None]]

_FILES_RETRY_S = 0.5


class FleetError(WeirError, RuntimeError):
    """The fleet can't serve any more; says why."""


class Looks:
    """One task for each thing that is looked at, so that what is slow holds up nothing else.

    Args:
      limit_s: for how long files may be out of reach, `serving.min_healthy_s`.
    """

    def __init__(self, *, limit_s: float, waits: Waits, log: Callable[..., None]) -> None:
        self._limit_s = limit_s
        self._waits = waits
        self._log = log
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def begin(self, what: str, every_s: float, look: Look) -> None:
        """Looks at something now, and again `every_s` seconds after each look has ended."""

        async def again_and_again() -> None:
            while True:
                await self._look(what, look)
                await asyncio.sleep(every_s)

        self._tasks[what] = asyncio.create_task(again_and_again(), name=what)

    def check(self) -> None:
        """Raises what ended a look."""
        for task in self._tasks.values():
            if task.done():
                task.result()

    def end(self, what: str) -> None:
        """Looks at one thing no more."""
        self._tasks.pop(what).cancel()

    def end_all(self, *, but: Collection[str] = ()) -> list[asyncio.Task[Any]]:
        """Looks at nothing else any more; returns the tasks, which may take a moment to end."""
        ended = [what for what in self._tasks if what not in but]
        tasks = [self._tasks.pop(what) for what in ended]
        for task in tasks:
            task.cancel()
        return tasks

    async def _look(self, what: str, look: Look) -> None:
        """Looks once, and where files can't be read or written again until they can: the replicas serve meanwhile.

        Raises:
          FleetError: that lasted for `serving.min_healthy_s`.
        """
        try:
            await look()
            return
        except OSError as error:
            reason = str(error)
        self._log("files_failed", what=what, error=reason)
        with self._waits.waiting(
            f"files of the {what}",
            on="the disk of store.weights",
            limit_s=self._limit_s,
            setting="serving.min_healthy_s",
            error=FleetError,
        ) as wait:
            while True:
                wait.hint(reason)
                await wait.pause(_FILES_RETRY_S)
                try:
                    await look()
                    return
                except OSError as error:
                    reason = str(error)
