"""The queue benchmark's sides as in a run: one process puts while another leases, trains and acknowledges."""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Protocol

from learner_jax.contracts import Trajectory, decode_group, encode_group
from learner_jax.runtime import keep_freed_memory
from serving_bridge.queue import TrajectoryQueue
from tools.bench import BenchmarkError
from tools.bench.queue.sides import CLAIM_ALL, DiskSide, Numbered, named, persist_queue, trajectories

#: Indices of the prompts of each batch.
Batches = Sequence[Sequence[int]]

_TIMEOUT_S = 120.0
_POLL_S = 0.0002


class Stream(Protocol):
    """A queue with somebody at either end."""

    def prepare(self, count: int) -> list[int]:
        """Indices of the next prompts; not timed."""

    def through(self, batches: Batches) -> float:
        """Takes batches through; returns the seconds from the beginning of the first to the end of the last."""

    def close(self) -> None:
        """Not timed."""


class WeirStream:
    """Weir's queue: a worker's process puts, the learner's (this one) leases, marks and acknowledges each batch."""

    def __init__(self, url: str, *, blobs: Path | None = None, blob_bytes: int, num_bytes: int, batch: int):
        self.queue = TrajectoryQueue(url, blobs=blobs, blob_bytes=blob_bytes)
        context = multiprocessing.get_context("spawn")
        self._worker, theirs = context.Pipe()
        self._process = context.Process(
            target=_put_batches, args=(theirs, url, blobs, blob_bytes, num_bytes, batch), daemon=True
        )
        self._process.start()
        self._receive("opened")

    def prepare(self, count: int) -> list[int]:
        return self.queue.producer.claim_prompts("bench", count, CLAIM_ALL, served_step=0)

    def through(self, batches: Batches) -> float:
        self._worker.send(batches)
        self._receive("ready")
        waiting = sum(map(len, batches))
        started = time.perf_counter()
        self._worker.send("go")
        while waiting:
            report = self.queue.consumer.lease_groups(len(batches[0]), trained_version=1, max_staleness=1)
            if not report.groups:
                if time.perf_counter() - started > _TIMEOUT_S:
                    raise BenchmarkError(f"{self.queue.database.name}: {waiting} groups did not come")
                time.sleep(_POLL_S)
                continue
            ids = [group[0].group_id for group in report.groups]
            self.queue.consumer.mark_trained(ids, completed_steps=0, trained_version=1)
            self.queue.consumer.acknowledge(ids)
            waiting -= len(ids)
        seconds = time.perf_counter() - started
        self._receive("done")
        return seconds

    def close(self) -> None:
        self._worker.close()
        self._process.join(_TIMEOUT_S)
        self.queue.close()

    def _receive(self, expected: str) -> None:
        try:
            got = self._worker.recv() if self._worker.poll(_TIMEOUT_S) else "nothing"
        except EOFError:
            got = "its end"
        if got != expected:
            raise BenchmarkError(f"the putting process sent {got}, expected {expected}")


def _put_batches(
    learner: Connection, url: str, blobs: Path | None, blob_bytes: int, num_bytes: int, batch: int
) -> None:
    keep_freed_memory()
    prototypes = trajectories(batch, num_bytes)
    queue = TrajectoryQueue(url, blobs=blobs, blob_bytes=blob_bytes)
    learner.send("opened")
    while True:
        try:
            batches: Batches = learner.recv()
        except EOFError:
            break
        groups = [list(zip(indices, named(prototypes, indices), strict=True)) for indices in batches]
        learner.send("ready")
        learner.recv()
        for batch_groups in groups:
            queue.producer.put(batch_groups)
        learner.send("done")
    queue.close()


class PersistQueueStream(Numbered):
    """persist-queue with a thread at either end: it counts in memory, so that processes can't share one of its queues.

    Args:
      whole: a batch is one item.
    """

    def __init__(self, folder: Path, *, whole: bool, num_bytes: int, batch: int):
        super().__init__()
        self._queue = persist_queue().SQLiteAckQueue(str(folder), multithreading=True)
        self._whole, self._prototypes = whole, trajectories(batch, num_bytes)

    def through(self, batches: Batches) -> float:
        groups = [named(self._prototypes, indices) for indices in batches]
        putting = threading.Thread(target=self._put, args=(groups,))
        started = time.perf_counter()
        putting.start()
        for batch in batches:
            items = [self._queue.get(timeout=_TIMEOUT_S) for _ in range(1 if self._whole else len(batch))]
            for payload in items[0] if self._whole else items:
                decode_group(payload)
            for item in items:
                self._queue.ack(item)
        seconds = time.perf_counter() - started
        putting.join()
        self._queue.clear_acked_data(keep_latest=0)
        return seconds

    def close(self) -> None:
        self._queue.close()

    def _put(self, batches: Sequence[Sequence[Sequence[Trajectory]]]) -> None:
        for groups in batches:
            payloads = [encode_group(group) for group in groups]
            for item in [payloads] if self._whole else payloads:
                self._queue.put(item)


class DiskStream(DiskSide):
    """The disk; encoding is not counted."""

    def __init__(self, path: Path, *, num_bytes: int, batch: int):
        super().__init__(path)
        self._prototypes = trajectories(batch, num_bytes)

    def through(self, batches: Batches) -> float:
        return sum(sum(self.take(indices, named(self._prototypes, indices)).values()) for indices in batches)
