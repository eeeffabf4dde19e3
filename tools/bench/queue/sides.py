"""The queues that the queue benchmark compares, each taking one batch of trajectories through at a time."""

from __future__ import annotations

import dataclasses
import importlib
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from learner_jax.contracts import NOT_SAMPLED, Trajectory, decode_group, encode_group
from serving_bridge.queue import Pace, TrajectoryQueue
from serving_bridge.settings import StoreSettings
from tools.bench import BenchmarkError

#: A gate that is always open.
CLAIM_ALL = Pace(max_staleness=0, groups_per_step=10**12, total_steps=1)


class Side(Protocol):
    """A queue under test."""

    def prepare(self, count: int) -> list[int]:
        """Indices of the next prompts; not timed."""

    def take(self, indices: Sequence[int], groups: Sequence[Sequence[Trajectory]]) -> Mapping[str, float]:
        """Takes a batch through from beginning to end; returns the seconds of each operation."""

    def close(self) -> None:
        """Not timed."""


class Numbered:
    """Prompts counted here."""

    def __init__(self) -> None:
        self._next = 0

    def prepare(self, count: int) -> list[int]:
        self._next += count
        return list(range(self._next - count, self._next))


class WeirSide:
    """Weir's queue on either engine; groups of one trajectory."""

    def __init__(self, url: str, *, blobs: Path | None = None, blob_bytes: int = StoreSettings().blob_bytes):
        self.queue = TrajectoryQueue(url, blobs=blobs, blob_bytes=blob_bytes)
        self._step = 0

    def prepare(self, count: int) -> list[int]:
        return self.queue.producer.claim_prompts("bench", count, CLAIM_ALL, served_step=0)

    def take(self, indices: Sequence[int], groups: Sequence[Sequence[Trajectory]]) -> Mapping[str, float]:
        seconds: dict[str, float] = {}
        with _timed(seconds, "put"):
            self.queue.producer.put(list(zip(indices, groups, strict=True)))
        with _timed(seconds, "lease"):
            report = self.queue.consumer.lease_groups(len(groups), trained_version=1, max_staleness=1)
        ids = [group[0].group_id for group in report.groups]
        if len(ids) != len(groups):
            raise BenchmarkError(f"{self.queue.database.name} gave back {len(ids)} of {len(groups)} groups")
        self._step += 1
        with _timed(seconds, "mark_trained"):
            self.queue.consumer.mark_trained(ids, completed_steps=0, trained_version=1)
        with _timed(seconds, "acknowledge"):
            self.queue.consumer.acknowledge(ids)
        return seconds

    def close(self) -> None:
        self.queue.close()


class PersistQueueSide(Numbered):
    """persist-queue's SQLiteAckQueue, which commits every put, get and ack by itself.

    It keeps what was acknowledged until it is told to clear it, which is not timed here.

    Args:
      whole: a batch is one item, hence one commit for each operation.
    """

    def __init__(self, folder: Path, *, whole: bool):
        super().__init__()
        self._queue = persist_queue().SQLiteAckQueue(str(folder))
        self._whole = whole

    def take(self, indices: Sequence[int], groups: Sequence[Sequence[Trajectory]]) -> Mapping[str, float]:
        seconds: dict[str, float] = {}
        with _timed(seconds, "put"):
            payloads = [encode_group(group) for group in groups]
            for item in [payloads] if self._whole else payloads:
                self._queue.put(item)
        with _timed(seconds, "lease"):
            items = [self._queue.get(block=False) for _ in range(1 if self._whole else len(groups))]
            found = [decode_group(payload) for item in items for payload in (item if self._whole else [item])]
        if len(found) != len(groups):
            raise BenchmarkError(f"persist-queue gave back {len(found)} of {len(groups)} groups")
        with _timed(seconds, "acknowledge"):
            for item in items:
                self._queue.ack(item)
        self._queue.clear_acked_data(keep_latest=0)
        return seconds

    def close(self) -> None:
        self._queue.close()


class DiskSide(Numbered):
    """What the disk can do: a batch's bytes appended to a file and synced; the file starts anew when it is long."""

    def __init__(self, path: Path, *, max_bytes: int = 64 * 2**20):
        super().__init__()
        self._file = os.open(path, os.O_CREAT | os.O_WRONLY, 0o600)
        self._max_bytes, self._at = max_bytes, 0

    def take(self, indices: Sequence[int], groups: Sequence[Sequence[Trajectory]]) -> Mapping[str, float]:
        payload = b"".join(encode_group(group) for group in groups)
        if self._at > self._max_bytes:
            os.ftruncate(self._file, 0)
            self._at = 0
        seconds: dict[str, float] = {}
        with _timed(seconds, "write+fsync"):
            os.pwrite(self._file, payload, self._at)
            os.fsync(self._file)
        self._at += len(payload)
        return seconds

    def close(self) -> None:
        os.close(self._file)


class CodecSide(Numbered):
    """Encoding, checking and decoding the trajectories, which every queue has to wait for."""

    def take(self, indices: Sequence[int], groups: Sequence[Sequence[Trajectory]]) -> Mapping[str, float]:
        seconds: dict[str, float] = {}
        with _timed(seconds, "encode"):
            payloads = [encode_group(group) for group in groups]
        with _timed(seconds, "decode"):
            for payload in payloads:
                decode_group(payload)
        return seconds

    def close(self) -> None:
        pass


def persist_queue() -> Any:
    """The peer. Raises `BenchmarkError` where it is not installed."""
    try:
        return importlib.import_module("persistqueue")
    except ImportError:
        raise BenchmarkError(
            "the peer persist-queue is not installed: `.venv/bin/pip install persist-queue`, or choose other --sides"
        ) from None


def trajectories(count: int, num_bytes: int) -> list[Trajectory]:
    """Trajectories whose encoding takes about so many bytes; random, hence incompressible."""
    rng = np.random.default_rng(0)
    length = max(4, num_bytes // 21)  # int32 three times, float32 twice, bool
    mask = np.arange(length) >= length // 4
    return [
        Trajectory(
            trajectory_id="",
            group_id="",
            group_size=1,
            prompt={"task": "bench", "index": number},
            tokens=rng.integers(0, 2**31 - 1, length).astype(np.int32),
            loss_mask=mask,
            behavior_logprobs=np.where(mask, -rng.random(length), 0).astype(np.float32),
            policy_version=np.where(mask, 1, NOT_SAMPLED).astype(np.int32),
            turn=np.zeros(length, np.int32),
            rewards=rng.standard_normal(length).astype(np.float32),
            reward_parts={"correct": 1.0},
            verdict="pass",
            finish_reason="stop",
            sampling={"temperature": 1.0},
            reward_version="bench 1",
        )
        for number in range(count)
    ]


def named(prototypes: Sequence[Trajectory], indices: Sequence[int]) -> list[list[Trajectory]]:
    """Groups of one trajectory each, with the ids of these prompts."""
    return [
        [
            dataclasses.replace(
                prototype,
                group_id=f"bench/0/{index}",
                trajectory_id=f"bench/0/{index}/0",
                prompt={**prototype.prompt, "index": index},
            )
        ]
        for prototype, index in zip(prototypes, indices, strict=True)
    ]


@contextmanager
def _timed(seconds: dict[str, float], operation: str, clock: Callable[[], float] = time.perf_counter) -> Iterator[None]:
    started = clock()
    yield
    seconds[operation] = clock() - started
