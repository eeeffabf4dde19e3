"""Warm sandboxes: some are always started, and each judges one answer.

Sandboxes die with the thread that starts them, which is one of the pool's own: they end with the pool, and with the
process that has it, however that ends.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from rewards.code.sandbox.box import Box, BoxEnded, Tier
from rewards.code.sandbox.control_groups import ControlGroups
from rewards.code.sandbox.limits import Limits, Program, Report, SandboxError
from rewards.code.sandbox.users import next_user

_START_S = 30.0
_MAX_DEADLINE_S = 3600.0
_ATTEMPTS = 2
#: of Python's threads and the processes around the answer's
_OTHER_PROCESSES = 8


class SandboxPool:
    """Judges answers in sandboxes, some at a time. Safe to call from several threads.

    Args:
      num_workers: answers that are judged at a time; more wait for their turn.
      num_warm: sandboxes that are started ahead; as many as workers if None.
    """

    def __init__(self, tier: Tier, limits: Limits, *, num_workers: int, num_warm: int | None = None) -> None:
        self._tier, self.limits = tier, limits
        self._groups = ControlGroups(
            limits.total_bytes + tier.own_bytes, limits.threads + _OTHER_PROCESSES + tier.own_processes
        )
        self._num_warm = num_workers if num_warm is None else num_warm
        self._turns = threading.Semaphore(num_workers)
        self._changed = threading.Condition()
        self._warm: deque[Box] = deque()
        self._wanted = 0
        self._is_closed = False
        self._failure = ""
        self._executor = ThreadPoolExecutor(num_workers, thread_name_prefix="code-sandbox")
        self._starter = threading.Thread(target=self._start_boxes, name="code-sandbox-starter", daemon=True)
        self._starter.start()

    @property
    def walls(self) -> str:
        """What holds here, in words."""
        groups = f"cgroup {self._groups.kind}" if self._groups.kind else "no cgroup"
        return f"{self._tier.name}, {'own user' if next_user() is not None else 'same user'}, {groups}"

    @property
    def prefix(self) -> str:
        """Folder of the Python inside."""
        return self._tier.interpreter.prefix

    def run(self, request: Mapping[str, Any], deadline_s: float) -> Report:
        """Has a request judged in a sandbox of its own.

        Returns:
          The report; one that says how the sandbox ended if that happened twice.

        Raises:
          SandboxError: no sandbox starts.
        """
        if not 0 < deadline_s <= _MAX_DEADLINE_S:
            raise ValueError(f"a deadline of {deadline_s} s, expected more than 0 and at most {_MAX_DEADLINE_S:g}")
        why = ""
        with self._turns:
            for _ in range(_ATTEMPTS):
                box = self._take()
                try:
                    box.wait(time.monotonic() + _START_S)
                except BoxEnded as error:
                    box.kill()
                    raise SandboxError(f"no sandbox starts ({self._tier.name}): {error}") from None
                try:
                    return box.ask(request, deadline_s)
                except BoxEnded as error:
                    why = str(error)
                finally:
                    box.kill()
        return Report((), why)

    def run_program(self, code: str, stdin: str, deadline_s: float) -> Program:
        """What a program prints, and how it ends; for tools that run Python, which judge nothing.

        Raises:
          SandboxError: no sandbox starts.
        """
        case = {"kind": "program", "stdin": stdin, "stdout": None, "limit": self.limits.output_bytes}
        nothing = {"prelude": "", "classes": "", "names": [], "modules": [], "helpers": {}}
        report = self.run({**nothing, "code": code, "cases": [case]}, deadline_s)
        if not report.outcomes:
            return Program("", f"error: {report.ended}")
        (outcome,) = report.outcomes
        return Program(outcome["printed"], outcome["why"])

    async def run_async(self, request: Mapping[str, Any], deadline_s: float) -> Report:
        """`run` for an event loop, which goes on meanwhile."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, partial(self.run, request, deadline_s))

    def close(self) -> None:
        """Ends all sandboxes; running requests get a report that says so."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        self._starter.join(_START_S)
        self._executor.shutdown(wait=True, cancel_futures=True)
        self._tier.close()

    def _take(self) -> Box:
        with self._changed:
            self._wanted += 1
            self._changed.notify_all()
            try:
                is_there = self._changed.wait_for(lambda: self._warm or self._is_closed or self._failure, _START_S)
                if self._is_closed:
                    raise SandboxError("the sandboxes were closed")
                if not is_there:
                    raise SandboxError(f"no sandbox was started within {_START_S:g} s")
                if not self._warm:
                    failure, self._failure = self._failure, ""
                    raise SandboxError(f"no sandbox starts ({self._tier.name}): {failure}")
                return self._warm.popleft()
            finally:
                self._wanted -= 1
                self._changed.notify_all()

    def _start_boxes(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._is_closed or self._is_short())
                if self._is_closed:
                    break
            try:
                box = Box(self._tier, self.limits, self._groups.make(), next_user(), _MAX_DEADLINE_S)
            except (OSError, SandboxError) as error:
                with self._changed:
                    self._failure = f"{error}"
                    self._changed.notify_all()
                    self._changed.wait_for(lambda: self._is_closed, 0.1)
                continue
            with self._changed:
                self._failure = ""
                self._warm.append(box)
                self._changed.notify_all()
        while self._warm:
            self._warm.popleft().kill()

    def _is_short(self) -> bool:
        return not self._failure and len(self._warm) < max(self._num_warm, self._wanted)
