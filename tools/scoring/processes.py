"""Answers are judged in several processes; one that hangs or dies costs the line that it was at, and no other.

Each process gets a batch of lines at a time and answers line by line, so that it is known which line it is at. Results
come out in the order of the lines, and only so many batches are in work that memory doesn't grow with the file.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import queue
import signal
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.connection import Connection
from typing import Any

from learner_jax.runtime import WeirError, raised
from rewards.contracts import failed
from tools.scoring.judges import Source, open_judge
from tools.scoring.lines import Line, ScoreError
from tools.scoring.scored import Label, Scored, judge_line, of_result, parse_line

_BATCH_LINES = 32
_BATCH_BYTES = 1 << 20
_BATCHES_AHEAD = 4
_START_S = 180.0
#: a verifier's own deadline comes first, and tells more
_GRACE_S = 5.0
_END_S = 5.0


class Processes:
    """Processes that judge lines. Use it as a context manager.

    Args:
      source: what judges.
      count: number of processes.

    Raises:
      ScoreError: the judge can't be made; said by the first process.
    """

    def __init__(self, source: Source, count: int) -> None:
        self._source = source
        self._count = count
        self._idle: queue.SimpleQueue[_Process | None] = queue.SimpleQueue()
        self._made: list[_Process] = []
        self._lock = threading.Lock()
        self._idle.put(self._start())
        for _ in range(count - 1):
            self._idle.put(None)

    @property
    def count(self) -> int:
        return self._count

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            for process in self._made:
                process.kill()

    def judge(self, batch: list[Line]) -> list[Scored]:
        """The lines, judged. Blocks until one of the processes is free, then at most a deadline a line."""
        process = self._idle.get(timeout=self._longest_wait_s(len(batch)))
        results: list[Scored] = []
        try:
            while len(results) < len(batch):
                process = process or self._start()
                process = self._go_on(process, batch, results)
        finally:
            self._idle.put(process)
        return results

    def _go_on(self, process: _Process, batch: list[Line], results: list[Scored]) -> _Process | None:
        """Judges lines until all are or the process is lost; returns the process if it is still of use."""
        try:
            process.send(batch[len(results) :])
            while len(results) < len(batch):
                if (result := process.receive(self._line_s)) is None:
                    results.append(_unjudged(batch[len(results)], f"no verdict within {self._line_s:g} s", "timeout"))
                    self._end(process)
                    return None
                results.append(result)
        except (EOFError, OSError):
            results.append(_unjudged(batch[len(results)], "the process that judged it died", "crashed"))
            self._end(process)
            return None
        return process

    @property
    def _line_s(self) -> float:
        return self._source.deadline_s + _GRACE_S

    def _longest_wait_s(self, lines: int) -> float:
        return _START_S + _BATCH_LINES * (self._line_s + _START_S)

    def _start(self) -> _Process:
        process = _Process(self._source)
        with self._lock:
            self._made.append(process)
        return process

    def _end(self, process: _Process) -> None:
        process.kill()
        with self._lock:
            self._made.remove(process)


def scored_lines(lines: Iterable[Line], processes: Processes) -> Iterator[Scored]:
    """The lines, judged, in their order."""
    waiting: deque[Future[list[Scored]]] = deque()
    with ThreadPoolExecutor(processes.count) as threads:
        try:
            for batch in _batches(lines):
                waiting.append(threads.submit(processes.judge, batch))
                while len(waiting) >= _BATCHES_AHEAD * processes.count:
                    yield from waiting.popleft().result()
            while waiting:
                yield from waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _batches(lines: Iterable[Line]) -> Iterator[list[Line]]:
    batch: list[Line] = []
    size = 0
    for line in lines:
        batch.append(line)
        size += len(line.content or b"")
        if len(batch) == _BATCH_LINES or size >= _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _unjudged(line: Line, reason: str, failure: Any) -> Scored:
    label: Label = None
    with contextlib.suppress(ValueError):
        label = parse_line(line)[2]
    return of_result(line.number, failed(reason, failure), 0.0, label)


class _Process:
    """One process, and the pipe to it."""

    def __init__(self, source: Source) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, source), daemon=False)
        self._process.start()
        theirs.close()
        try:
            said = self._pipe.recv() if self._pipe.poll(_START_S) else "it didn't start in time"
        except (EOFError, OSError):
            said = f"it ended with exit status {self._process.exitcode}"
        if said:
            self.kill()
            raise ScoreError(said)

    def send(self, batch: list[Line]) -> None:
        self._pipe.send(batch)

    def receive(self, timeout_s: float) -> Scored | None:
        """The next result; None if it doesn't come in time."""
        return self._pipe.recv() if self._pipe.poll(timeout_s) else None

    def kill(self) -> None:
        self._pipe.close()
        self._process.kill()
        self._process.join(_END_S)


def _serve(pipe: Connection, source: Source) -> None:
    """The life of a process: makes the judge, says how that went, and judges batches until the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Control-C is the parent's to handle
    try:
        judge = open_judge(source)
    except WeirError as error:
        pipe.send(str(error))
        return
    except Exception as error:  # noqa: BLE001  (told to the process that started this one)
        pipe.send(raised(error))
        return
    pipe.send("")
    while True:
        try:
            batch: list[Line] = pipe.recv()
        except (EOFError, OSError):
            break
        for line in batch:
            pipe.send(judge_line(line, judge.judge))
    judge.close()
