"""What a run measures: one JSON line per event, appended by every process to one `metrics.jsonl`.

A line is `{"t": unix seconds, "process": ..., "event": ..., ...fields}`. `null` stands for "not measured" and for a
number that was not finite. Times are seconds, log-probs and KL nats per token, shares fractions. Events by producer:

learner
  warm_start  step, loss, accuracy (or null), step_s; of DPO also preference_accuracy, margin
  step        step, version, loss, reward (or null), kl, entropy, clip_fraction, grad_norm, staleness_mean,
              staleness_max, mismatch_mean_abs_logprob (or null), mismatch_max_abs_logprob (or null), mismatch_tokens,
              num_tokens, answer_tokens_mean, dropped_stale, zero_variance_groups, failed_verdicts (answers in neither
              the loss nor any statistic of rewards), unjudged_groups (dropped for them), mfu, real_token_share, and
              where the time went: wait_s (for groups; the reference's log-probs are computed in it), prepare_s
              (building the batch), transfer_s (packing, first microbatch to the devices), compute_s, publish_s and
              save_s (what of them blocked), step_s (all), train_s (prepare, transfer and compute)
  engine      platform, device, mesh, attention, compute_dtype, row_tokens, microbatch_rows, peak_tflops_per_device
  published   version, step, seconds, format ("full" | "sparse"), num_bytes, num_changed (or null)
  anchor_added, anchor_failed   version, reason: a version stored once more, whole, because a replica could not load it
  resumed     step, consumed (trajectory ids), verified (whether hashes vouch for the checkpoint's files)
  checkpoint  step, blocking_s
  ousted      steps (checkpoints of replaced learners that were put aside), life
  committed   step, verified, hash_s, seconds
  uncommitted step, waited_s: a checkpoint that takes long to reach the disk
  copied      step, bytes, seconds: a checkpoint is in object storage, too (store.checkpoints)
  brought     step: of the checkpoint that was brought from there
  stopping    step: asked to stop
  host_failed host, error: another host of the learner (or this one) can't go on, and this process ends
  life, consumed, saving   step, life (process id); consumed also version, groups, oldest: with WEIR_RECORD_HISTORY in
              the environment only, for checks of a run's history
rollout
  interval    about once a second, counts are of that interval: groups, tokens (sampled ones), seconds, idle_s, running
              (groups), served_version (or null), retries (of requests), mixed_version_answers, skipped_prompts (too
              long), left_out_prompts (by a measured curriculum), failed_groups (given up), verdicts (answers that a
              verifier was asked about), failed_verdicts (those without one), failed_verdict_kinds ({kind: number}) and
              failed_verdict_example (where there are any), unjudged_groups (given up: fewer than two answers judged),
              resumed (answers taken up after an abort), segments (further pieces of answers), spares_used,
              deadline_hits (episodes), environment_turns (observations given), environment_close_errors (episodes that
              their environment failed to end), agent_answers (to agents), agent_side_answers (not on the way to
              the last one of their episode), agent_rebuilt (requests of agents that could not go on from recorded ids),
              queue_full_waits (puts refused by a full queue), lost_claims (groups that another worker took over),
              released_groups and unrewarded_groups (whose wait for rewards ended here: gone on, or dropped),
              waiting_requests (now, for a replica with room), cuts (of limits), replicas: {name: {in_flight, limit}},
              answers of this worker; of a task with several sources, sources: {label: {groups, episodes,
              tokens (sampled in these), answers (judged), passes, reward (their sum), reward_mean}}
  retry       error, and what it was about: replica and attempt (a request), prompt_index and attempt (a group)
  unjudged_group   prompt_index, answers, judged: a group given up for its failed verdicts
  heldout     version, step, accuracy, mean_score, num_problems (judged), num_skipped, num_cut, failed_verdicts
              ({kind: number}), versions (oldest and newest that sampled), samples (the first few answers, to the same
              problems each time); of a task with several sources, sources: {label: {num_problems, accuracy,
              mean_score}}
fleet
  round       replica, version, step, outcome, stage_s, pause_s, probe_s, running_at_pause, probe_max_abs,
              error (or null)
  replica     replica, state (see `serving_bridge.routing.lifecycle`; "gone" when it left), version, reason
  replica_started   replica, seconds: a server answers and is warm
  replica_lost      replica, reason, restart_in_s: its process ended, hangs, or failed too many rounds
  replica_restart   replica, reason
  replica_failed    replica, error: a server could not be started, or not be ended
  files_failed      what, error: files of the registry, the store or orders can't be read or written; tried again
  version_damaged   version, error: what the store holds can't be loaded; it is asked for whole
train
  phase       name
  evaluation  which ("before" | "after"), accuracy, mean_score, num_problems and the rest of
              `serving_bridge.evaluation.figures.Evaluation`
  summary     the figures of summary.json

every process
  logger      logger (one of run.loggers), error: its first failure, or that it falls behind; at the end, where some
              were lost: written, failed, dropped (events)
  waits       waits: [{what, on, waited_s, limit_s}], the longest first: what it has waited for a second or longer; once
              more, empty, when all waits have ended; at most every 5 seconds while nothing changes

Consumers are `tools.view` and `tools.report`; they take unknown events and fields as they come.
"""

from __future__ import annotations

import fcntl
import json
import logging
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import numpy as np

from learner_jax.runtime import at

Record = dict[str, Any]

#: A second in all; the lock is held for microseconds.
_LOCK_TRIES, _LOCK_POLL_S = 2000, 0.0005
#: read at a time; a line is shorter
_PIECE_BYTES = 2**24
_LOG_FORMAT = "%(asctime)s %(levelname)-7s {process} %(name)s: %(message)s"


class MetricsLog:
    """Appends events to a metrics file that several processes share.

    Each event is a single `write` to a descriptor opened with O_APPEND, so that lines of different processes never
    mix (on a local file system; NFS gives no such promise). A line that a crash or a full disk tore is ended by whoever
    writes next, so that only that one is lost; not by who finds the file locked for a second, by a process that was
    stopped in the middle of a write. Safe to use from several threads.
    """

    def __init__(self, path: str | Path, process: str, *, clock: Callable[[], float] = time.time) -> None:
        self._path, self._process, self._clock = path, process, clock
        self._lock = threading.Lock()  # flock knows descriptors, not threads
        self._descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self._listeners: list[Callable[[Record], None]] = []
        self._watchers: list[Callable[[Record], None]] = []

    def hand_to(self, listener: Callable[[Record], None]) -> None:
        """Calls `listener` with every event from now on, once it is in the file; it must not raise or wait."""
        self._listeners.append(listener)

    def show_to(self, watcher: Callable[[Record], None]) -> None:
        """As `hand_to`, but with the events that loggers write of themselves, too."""
        self._watchers.append(watcher)

    def write(self, event: str, **fields: Any) -> None:
        """Appends one event. Numbers may be Python's or NumPy's; one that is not finite is written as null.

        Raises:
          TypeError: a field is of a type that JSON has no place for.
          OSError: the line could not be written whole, as where the disk is full; names the file.
        """
        record = self.write_here(event, **fields)
        for listener in self._listeners:
            listener(record)

    def write_here(self, event: str, **fields: Any) -> Record:
        """As `write`, but listeners are not called; returns the event as it stands in the file."""
        record: Record = _plain({"t": round(self._clock(), 3), "process": self._process, "event": event, **fields})
        line = (json.dumps(record, allow_nan=False, separators=(",", ":")) + "\n").encode()
        with at(self._path), self._lock:
            self._append(line)
        for watcher in self._watchers:
            watcher(record)
        return record

    def _append(self, line: bytes) -> None:
        """Writes, under the file's lock: without it, a line that another process is just writing would look torn."""
        with self._file_lock() as is_locked:
            size = os.fstat(self._descriptor).st_size
            if is_locked and size and os.pread(self._descriptor, 1, size - 1) != b"\n":
                line = b"\n" + line
            while line:  # what a full disk took only a part of is tried again, for the error that says why
                line = line[os.write(self._descriptor, line) :]

    @contextmanager
    def _file_lock(self) -> Iterator[bool]:
        """Holds the file's lock while the block runs; gives False if it could not be had in time."""
        for _ in range(_LOCK_TRIES):
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(_LOCK_POLL_S)
                continue
            try:
                yield True
            finally:
                fcntl.flock(self._descriptor, fcntl.LOCK_UN)
            return
        yield False

    def close(self) -> None:
        os.close(self._descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class MetricsTail:
    """Reads what was appended to a metrics file since the last call; the file need not exist yet.

    Args:
      piece_bytes: read at a time; a longer line is no event.

    Attributes:
      offset: bytes of the file that were read.
    """

    def __init__(self, path: str | Path, *, piece_bytes: int | None = None) -> None:
        self._path, self._piece_bytes = Path(path), piece_bytes
        self.offset = 0

    def read(self) -> list[Record]:
        """Events of the whole lines that came since the last call; a line still being written waits for the next."""
        return [record for records in self.pieces() for record in records]

    def pieces(self) -> Iterator[list[Record]]:
        """As `read`, a piece at a time; who stops early gets the rest by the next call."""
        piece_bytes = self._piece_bytes or _PIECE_BYTES
        try:
            with self._path.open("rb") as file:
                file.seek(self.offset)
                while data := file.read(piece_bytes):
                    end = data.rfind(b"\n") + 1
                    if not end and len(data) == piece_bytes:
                        end = len(data)  # of a line without end, which is none of ours
                    self.offset += end
                    yield [record for line in data[:end].splitlines() if (record := _parse(line)) is not None]
                    if len(data) < piece_bytes:
                        return
                    file.seek(self.offset)
        except FileNotFoundError:
            return


def read_metrics(path: str | Path) -> list[Record]:
    """All events of a metrics file, in file order, leaving out lines that a crash tore. A missing file has none."""
    return MetricsTail(path).read()


def configure_logging(process: str, log_path: str | Path | None = None, *, level: int = logging.INFO) -> None:
    """Sends this process's log to a file (appended), or to stderr if no file is given."""
    handler = logging.FileHandler(log_path) if log_path is not None else logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(_LOG_FORMAT.format(process=process)))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.captureWarnings(True)


def _parse(line: bytes) -> Record | None:
    """One line's event; None for a line torn by a crash, or of nobody's making, after which the file goes on."""
    try:
        record = json.loads(line, parse_constant=_no_number)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or not isinstance(record.get("event"), str):
        return None
    if type(record.get("t", 0.0)) not in (int, float) or not isinstance(record.get("process", ""), str):
        return None
    return record


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")


def _plain(value: Any) -> Any:
    """The JSON form of a value: NumPy scalars and arrays become Python's, non-finite numbers None."""
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
