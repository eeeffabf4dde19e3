"""Reads a registry's note to training, again and again: rarely, never for long, and past what can't be read."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from pathlib import Path

from learner_jax.contracts import quoted
from learner_jax.runtime import WeirError
from serving_bridge.canary.training_note import TrainingNote, read_note

#: Seconds between two looks at the note, and that a look may take before somebody is told.
_EVERY_S, _READ_S = 1.0, 2.0


class TrainingHold:
    """Why training must wait, by the note of a namespace; None where it may go on.

    A note that can't be read leaves the answer as it was, at first None. That is told once, until one was read again.
    A note that was there and is gone can't be read: its folder may not be mounted.

    Args:
      root: the registry's folder.
      say: told why the note can't be read.
      wait_s: how long a call waits for a look; with 0 none waits, and the answer is that of the look before.
      clock: monotonic seconds.
    """

    def __init__(
        self,
        root: Path,
        namespace: str,
        *,
        say: Callable[[str], None],
        wait_s: float = _READ_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._root, self._namespace = root, namespace
        self._say, self._wait_s, self._clock = say, wait_s, clock
        self._next_s = float("-inf")
        self._reading: Future[TrainingNote | None] | None = None
        self._note: TrainingNote | None = None
        self._has_said = False

    def __call__(self) -> str | None:
        if self._reading is None and self._clock() >= self._next_s:
            self._next_s = self._clock() + _EVERY_S
            self._reading = _in_background(lambda: read_note(self._root, self._namespace))
            self._take(self._wait_s)
        elif self._reading is not None:
            self._take(0.0)
        return _reason(self._note)

    def anew(self, run: str) -> TrainingNote | None:
        """The note, where it says that this run is to begin anew; looks as a call does."""
        self()
        note = self._note
        return note if note is not None and note.anew and not note.hold and note.run == run else None

    def _take(self, wait_s: float) -> None:
        """What the look found, if it has ended or does within `wait_s`."""
        assert self._reading is not None
        try:
            note = self._reading.result(timeout=wait_s)
        except FutureTimeoutError:
            if self._clock() >= self._next_s - _EVERY_S + _READ_S:
                self._tell(f"it does not answer within {_READ_S:g} s")
            return
        except (WeirError, OSError) as error:
            self._tell(quoted(str(error), 300))
        else:
            if note is None and self._note is not None:
                self._tell("it is gone")
            else:
                self._note, self._has_said = note, False
        self._reading = None

    def _tell(self, problem: str) -> None:
        if not self._has_said:
            self._has_said = True
            now = "is held" if self._note is not None and self._note.hold else "goes on"
            self._say(
                f"the note to training of {self._namespace} in {self._root} (registry.path) can't be read: {problem}; "
                f"training {now} as before"
            )


def _reason(note: TrainingNote | None) -> str | None:
    if note is None or not note.hold:
        return None
    return f"entry {note.entry} was rolled back (rollout {note.rollout}): {quoted(note.reason, 300)}"


def _in_background(read: Callable[[], TrainingNote | None]) -> Future[TrainingNote | None]:
    """Reads in a thread, which a disk that hangs may keep: nobody waits for it."""
    outcome: Future[TrainingNote | None] = Future()

    def run() -> None:
        try:
            outcome.set_result(read())
        except BaseException as error:  # noqa: BLE001 - raised again where the outcome is asked for
            outcome.set_exception(error)

    threading.Thread(target=run, name="training note", daemon=True).start()
    return outcome
