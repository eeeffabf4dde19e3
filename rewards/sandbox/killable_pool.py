"""Answers are scored in processes that can be killed, are confined, and can't hand anything but bounded JSON back.

A call gets a short slice of time first, and only if that is not enough the rest of its deadline, behind all calls that
have not had their slice. The rests of one problem's answers share a budget. So answers that never end delay the
others by slices, not by deadlines.
"""

from __future__ import annotations

import json
import math
import os
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from learner_jax.runtime import WeirError
from rewards.contracts import Failure
from rewards.sandbox.verifier_process import (
    DEADLINE,
    DIED,
    HEADER,
    LATE,
    MAX_REQUEST_BYTES,
    MAX_RESULT_BYTES,
    READY,
    RESULT,
    TOO_LONG,
    Confinement,
)

_SLICE_S = 1.0
_START_S = 120.0
_GRACE_S = 10.0
#: a problem's budget is its deadline's length and is full again after so many deadlines
_REFILL_DEADLINES = 12
_MAX_BUDGETS = 4096
#: Without them libraries start threads that a fork would lose; the last two decide how Python itself behaves.
_ENVIRONMENT = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
_INHERITED = ("PYTHONHASHSEED", "LD_LIBRARY_PATH")


class VerifierError(WeirError):
    """The verifier gave no verdict: it raised, died, passed its deadline or its problem's budget.

    Attributes:
      failure: what the answer's verdict is called.
    """

    def __init__(self, message: str, failure: Failure = "error") -> None:
        super().__init__(message)
        self.failure: Failure = failure


class VerifierStartError(VerifierError):
    """The verifiers' process can't work.

    Attributes:
      said: by the process itself.
    """

    def __init__(self, said: str) -> None:
        super().__init__(f"the verifiers' process didn't start: {said}")
        self.said = said


class Verified(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a verifier writes, as JSON.

    Attributes:
      score: None if `error` says why there is none.
      reasons: why it is not a pass.
      observation: of an environment, what is said next; None at the end of an episode.
      state: of an environment, to be handed back with the next answer.
      finding: the verifier's own word for the verdict; empty where it has none.
    """

    score: float | None = None
    parts: dict[str, float] = {}
    reasons: list[str] = []
    error: str = ""
    observation: str | None = None
    state: Any = None
    finding: str = ""

    @property
    def judged_score(self) -> float:
        """The score; a missing one is an error, never 0.

        Raises:
          VerifierError: there is none.
        """
        if self.score is None:
            raise VerifierError(printable(self.error) or "the verifier gave no score")
        return self.score


class VerifierPool:
    """Verifier processes of one kind, started with the first call, ended by `close` or with their owner.

    `call` is safe to use from several threads and blocks the thread.

    Args:
      module: name of a module whose `create(settings)` returns a function from a request to the fields of `Verified`.
      settings: for `create`, as JSON.
      deadline_s: longest time for one answer.
      confinement: what the children that score are kept from; with "none" they have the owner's environment, too.
      slice_s: time of a first attempt; an answer that needs more is scored a second time from the start.
      folder: working folder of the processes.
    """

    def __init__(
        self,
        module: str,
        settings: Mapping[str, Any],
        *,
        num_workers: int,
        deadline_s: float,
        confinement: Confinement = "wanted",
        slice_s: float = _SLICE_S,
        folder: str = "/",
    ) -> None:
        start = {"module": module, "settings": dict(settings), "confinement": confinement}
        self._start = json.dumps(start).encode()
        self._folder = folder
        self._environment = dict(os.environ) if confinement == "none" else _least_environment()
        self._deadline_s = deadline_s
        self._slice_s = min(slice_s, deadline_s)
        # Covers the start of processes and the calls before this one, so that no wait is endless.
        self._max_wait_s = _START_S + 10 * deadline_s
        self._turns = _Turns(num_workers)
        self._budgets = _Budgets(deadline_s)
        self._idle: list[_Process] = []
        self._lock = threading.Lock()
        self._closed = False

    def check(self) -> None:
        """Starts a process and ends it, so that a verifier that can't be loaded is told before the first answer.

        Raises:
          VerifierStartError: it can't.
        """
        self._process().end()

    def call(self, request: Mapping[str, Any], *, key: str) -> Verified:
        """The verdict on a request.

        Args:
          key: of the problem; answers with the same key share a budget.

        Raises:
          VerifierError: there is no verdict.
        """
        try:
            payload = json.dumps(request).encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise VerifierError(f"the request is not JSON: {type(error).__name__}: {error}") from None
        if len(payload) > MAX_REQUEST_BYTES:
            raise VerifierError(
                f"the request has {len(payload)} bytes, at most {MAX_REQUEST_BYTES} are taken", "refused"
            )
        with self._turns.taken(key, is_rest=False, timeout_s=self._max_wait_s):
            result = self._once(payload, self._slice_s)
        if result is None and self._slice_s < self._deadline_s:
            result = self._rest(payload, key)
        if result is None:
            raise VerifierError(f"no verdict within {self._deadline_s:g} s", "timeout")
        return result

    def close(self) -> None:
        """Ends the processes; running calls fail."""
        with self._lock:
            self._closed = True
            processes, self._idle = self._idle, []
        for process in processes:
            process.end()

    def _rest(self, payload: bytes, key: str) -> Verified | None:
        with self._turns.taken(key, is_rest=True, timeout_s=self._max_wait_s):
            granted = self._budgets.take(key)
            if granted < self._slice_s:
                raise VerifierError(
                    f"no verdict within {self._slice_s:g} s, and the other answers to this problem have used up its "
                    f"{self._deadline_s:g} s for answers that take longer",
                    "timeout",
                )
            begin = time.monotonic()
            try:
                return self._once(payload, granted)
            finally:
                self._budgets.give_back(key, granted - (time.monotonic() - begin))

    def _once(self, payload: bytes, deadline_s: float) -> Verified | None:
        """One attempt; None if it took too long."""
        process = self._process()
        try:
            kind, said = process.ask(payload, deadline_s)
        except (OSError, EOFError, ValueError) as error:
            process.end()
            raise VerifierError(f"the verifiers' process is gone: {type(error).__name__}: {error}", "crashed") from None
        with self._lock:
            if is_kept := not self._closed:
                self._idle.append(process)
        if not is_kept:
            process.end()
        return _understood(kind, said)

    def _process(self) -> _Process:
        with self._lock:
            if self._closed:
                raise VerifierError("the verifiers were closed")
            if self._idle:
                return self._idle.pop()
        return _Process(self._start, self._folder, self._environment)


def _understood(kind: bytes, said: bytes) -> Verified | None:
    if kind == LATE:
        return None
    if kind == DIED:
        code = printable(said.decode(errors="replace"))
        raise VerifierError(f"the verifier's process died with exit code {code}", "crashed")
    if kind == TOO_LONG:
        raise VerifierError(f"the verifier wrote more than {MAX_RESULT_BYTES} bytes")
    if kind != RESULT:
        raise VerifierError(f"the verifiers' process sent {kind!r}, which is no result")
    try:
        verified = msgspec.json.decode(said, type=Verified)
    except (msgspec.MsgspecError, RecursionError, UnicodeError) as error:
        raise VerifierError(f"the verifier's result can't be read: {printable(str(error))}") from None
    if not all(math.isfinite(value) for value in (verified.judged_score, *verified.parts.values())):
        raise VerifierError(f"the verifier's score is {verified.score}")
    return verified


def printable(text: str) -> str:
    """`text` without control characters, line breaks and lone surrogates: each becomes a question mark."""
    return "".join(character if character.isprintable() else "?" for character in text)


def _least_environment() -> dict[str, str]:
    return {**_ENVIRONMENT, **{name: os.environ[name] for name in _INHERITED if name in os.environ}}


class _Process:
    """One verifier process, and the socket to it."""

    def __init__(self, start: bytes, folder: str, environment: Mapping[str, str]) -> None:
        root = str(Path(__file__).resolve().parents[2])
        paths = [root, *(path for path in sys.path if path and os.path.isabs(path) and path != root)]
        code = "import sys; sys.path[:] = sys.argv[1:]; from rewards.sandbox.verifier_process import main; main()"
        ours, theirs = socket.socketpair()
        with theirs:
            self._child = subprocess.Popen(
                [sys.executable, "-I", "-B", "-c", code, *paths],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=environment,
                cwd=folder,
            )
        self._link = ours
        try:
            self._link.settimeout(_START_S)
            self._link.sendall(HEADER.pack(READY, len(start)) + start)
            kind, said = self._receive()
        except (OSError, EOFError, ValueError) as error:
            self.end()
            raise VerifierStartError(f"{type(error).__name__}: {error}") from None
        if kind != READY:
            self.end()
            raise VerifierStartError(printable(said.decode(errors="replace")))

    def ask(self, payload: bytes, deadline_s: float) -> tuple[bytes, bytes]:
        """What became of the request, and the bytes of the result; OSError or EOFError if the process is gone."""
        self._link.settimeout(deadline_s + _GRACE_S)
        self._link.sendall(HEADER.pack(RESULT, len(payload)) + DEADLINE.pack(deadline_s) + payload)
        return self._receive()

    def end(self) -> None:
        """Kills the process; its children end with it."""
        self._link.close()
        self._child.kill()
        self._child.wait(_GRACE_S)

    def _receive(self) -> tuple[bytes, bytes]:
        kind, length = HEADER.unpack(self._exactly(HEADER.size))
        if length > MAX_RESULT_BYTES:
            raise ValueError(f"a result of {length} bytes")
        return kind, self._exactly(length)

    def _exactly(self, size: int) -> bytes:
        received = bytearray()
        while len(received) < size:
            chunk = self._link.recv(size - len(received))
            if not chunk:
                raise EOFError("its end of the socket was closed")
            received += chunk
        return bytes(received)


class _Turns:
    """Who runs next: first attempts before rests, then the problem with the fewest answers waiting, then the oldest.

    One of several places is never given to a rest, so that a first attempt waits for slices only.
    """

    def __init__(self, places: int) -> None:
        self._free = places
        self._rests_free = max(1, places - 1)
        self._waiting: list[tuple[bool, int, int]] = []
        self._of_key: Counter[str] = Counter()
        self._count = 0
        self._changed = threading.Condition()

    @contextmanager
    def taken(self, key: str, *, is_rest: bool, timeout_s: float) -> Iterator[None]:
        """Holds a place; VerifierError if none was free in time."""
        with self._changed:
            self._count += 1
            ticket = (is_rest, self._of_key[key], self._count)
            self._of_key[key] += 1
            self._waiting.append(ticket)
            try:
                if not self._changed.wait_for(lambda: self._may_run(ticket), timeout_s):
                    raise VerifierError(f"no verifier was free within {timeout_s:g} s", "timeout")
            finally:
                self._waiting.remove(ticket)
                self._of_key[key] -= 1
                if not self._of_key[key]:
                    del self._of_key[key]
            self._free -= 1
            self._rests_free -= is_rest
            self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._free += 1
                self._rests_free += is_rest
                self._changed.notify_all()

    def _may_run(self, ticket: tuple[bool, int, int]) -> bool:
        if not self._free or (ticket[0] and not self._rests_free):
            return False
        return ticket == min(other for other in self._waiting if self._rests_free or not other[0])


class _Budgets:
    """Seconds that the slow answers to one problem may still take; they come back with time."""

    def __init__(self, full_s: float) -> None:
        self._full_s = full_s
        self._left: dict[str, tuple[float, float]] = {}
        self._lock = threading.Lock()

    def take(self, key: str) -> float:
        """All that is left, at most one deadline."""
        with self._lock:
            now = time.monotonic()
            left, since = self._left.pop(key, (self._full_s, now))
            left = min(self._full_s, left + (now - since) / _REFILL_DEADLINES)
            self._left[key] = (0.0, now)
            while len(self._left) > _MAX_BUDGETS:
                self._left.pop(next(iter(self._left)))
            return left

    def give_back(self, key: str, seconds: float) -> None:
        with self._lock:
            left, since = self._left.get(key, (0.0, time.monotonic()))
            self._left[key] = (left + max(0.0, seconds), since)
