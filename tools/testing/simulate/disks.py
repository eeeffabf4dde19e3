"""What outlives simulated processes, in memory: weight store, replica registry, database and checkpoints."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from learner_jax.contracts import MANIFEST_SCHEMA, GoldenPrompt, Position, WeightManifest
from serving_bridge.database import Database, DatabaseError, DiskFullError, Session, open_database
from serving_bridge.routing import ReplicaRow
from serving_bridge.weights import StoreError, WeightIntegrityError
from tools.testing.fake_vllm import Applied, Sampled, check_newer
from tools.testing.simulate.loop import Process, ProcessDiedError

T = TypeVar("T")

GOLDEN = ((3, 5, 7), (2, 4, 6, 8))
VOCAB_SIZE = 64
_MAX_SILENCE_S = 30.0


def logprob_of(identity: int, tokens: Sequence[int], position: int) -> float:
    """A number in place of log p(tokens[position] | tokens before) under the weights of this identity; negative."""
    mixed = (
        identity * 2654435761 + tokens[position] * 40503 + tokens[position - 1] * 9176 + position * 31
    ) & 0xFFFFFFFF
    return -1.0 - ((mixed >> 8) % 4096) / 1024.0


class ArithmeticWeights:
    """Numbers in place of a model: weights are the version that they are of; implements `fake_vllm.weights.Weights`.

    Attributes:
      identity: the version, 0 for what a server starts with, negative for weights of no version.
      flips: loads that shall go wrong without a sign, counted down.
    """

    vocab_size = VOCAB_SIZE

    def __init__(self, store: SimulatedStore) -> None:
        self._store = store
        self.identity = 0
        self.flips = 0

    def read(self, root: Path, version: int, content_sha256: str, applied: Applied | None) -> int:
        manifest = self._store.best_manifest(version)
        if manifest.content_sha256 != content_sha256:
            raise StoreError(f"version {version} is {manifest.content_sha256}, expected {content_sha256}")
        check_newer(version, applied)
        if version in self._store.damaged and version not in self._store.anchors:
            raise WeightIntegrityError(f"version {version} is damaged")
        return version

    def load(self, staged: int) -> None:
        self.identity = staged
        if self.flips > 0:
            self.flips -= 1
            self.tear()

    def tear(self) -> None:
        self.identity = -1 - abs(self.identity)

    def sample(self, rows: Sequence[Sequence[int]], temperature: float, draws: Sequence[random.Random]) -> Sampled:
        tokens = [draw.randrange(2, VOCAB_SIZE) for draw in draws]
        whole = [[*row, token] for row, token in zip(rows, tokens, strict=True)]
        return Sampled(tokens, [logprob_of(self.identity, row, len(row) - 1) for row in whole])

    def prompt_logprobs(self, tokens: Sequence[int]) -> list[float]:
        return [logprob_of(self.identity, tokens, position) for position in range(1, len(tokens))]


class SimulatedStore:
    """The weight store's interface, as far as fleet and learner use it.

    Attributes:
      steps: version -> optimizer steps behind it, of every version that ever existed.
      damaged: versions whose files are not what their manifests say.
    """

    def __init__(self) -> None:
        self.root = Path("/simulated")
        self.steps: dict[int, int] = {}
        self.damaged: set[int] = set()
        self.anchors: set[int] = set()
        self._claimed = 0
        self._manifests: dict[int, WeightManifest] = {}
        self._wanted: set[int] = set()

    def versions(self) -> list[int]:
        return list(self._manifests)

    def best_manifest(self, version: int) -> WeightManifest:
        if version not in self._manifests:
            raise StoreError(f"no version {version}")
        return self._manifests[version]

    def has_anchor(self, version: int) -> bool:
        return version in self.anchors

    def want_anchor(self, version: int, reason: str) -> None:
        self._wanted.add(version)

    def claim(self) -> int:
        self._claimed += 1
        return self._claimed

    def publish(self, version: int, *, step: int) -> None:
        golden = [GoldenPrompt(list(p), [logprob_of(version, p, at) for at in range(1, len(p))]) for p in GOLDEN]
        self._manifests[version] = WeightManifest(
            schema=MANIFEST_SCHEMA,
            version=version,
            base_version=None,
            format="full",
            step=step,
            parent=None,
            run="sim",
            content_sha256=f"content of {version}",
            num_changed=None,
            files=[],
            tensors=[],
            golden=golden,
        )
        self._manifests = dict(sorted(self._manifests.items()))
        self.steps[version] = step

    def mend(self, newest: int) -> None:
        """What the publisher does about requests for anchors: it has the newest version only."""
        self.anchors |= self._wanted & {newest}
        self._wanted.clear()

    def collect(self, keep: int, in_use: Collection[int] = ()) -> list[int]:
        deleted = [version for version in self.versions()[:-keep] if version not in in_use]
        for version in deleted:
            del self._manifests[version]
        return deleted


class SimulatedRegistry:
    """The replica registry's interface as one process sees it; the rows are shared."""

    def __init__(
        self, process: Process, rows: dict[str, ReplicaRow], totals: dict[str, dict[str, tuple[int, int]]], folder: Path
    ) -> None:
        self._process, self._rows, self._totals, self.folder = process, rows, totals, folder

    def report(
        self,
        name: str,
        *,
        url: str,
        state: str,
        version: int,
        step: int,
        fleet: str = "",
        reason: str = "",
        start: str = "",
    ) -> None:
        self._process.check()
        self._rows[name] = ReplicaRow(name, url, state, version, step, self._process.wall_clock(), fleet, reason, start)

    def remove(self, name: str) -> None:
        self._process.check()
        self._rows.pop(name, None)

    def replicas(self) -> list[ReplicaRow]:
        return [self._rows[name] for name in sorted(self._rows)]

    def ready(self) -> list[ReplicaRow]:
        oldest_s = self._process.wall_clock() - _MAX_SILENCE_S
        fresh = [row for row in self.replicas() if row.heartbeat_s >= oldest_s]
        healthy = [row for row in fresh if row.state == "healthy"]
        return healthy or [row for row in fresh if row.state == "suspect"]

    def report_requests(self, worker: str, totals: Mapping[str, tuple[int, int]]) -> None:
        self._process.check()
        self._totals[worker] = dict(totals)

    def all_request_totals(self) -> dict[str, tuple[int, int]]:
        sums: dict[str, tuple[int, int]] = {}
        for totals in self._totals.values():
            for replica, (succeeded, failed) in totals.items():
                before = sums.get(replica, (0, 0))
                sums[replica] = before[0] + succeeded, before[1] + failed
        return sums

    def request_totals(self, replica: str) -> tuple[int, int]:
        return self.all_request_totals().get(replica, (0, 0))


#: what may happen to one transaction; drawn for each
DATABASE_FATES = ("ok", "twice", "full", "broken", "uncertain", "crash before commit", "crash after commit")


class SimulatedDatabase:
    """One process's connection; implements `serving_bridge.database.database.Database`.

    Args:
      draw_fate: one of `DATABASE_FATES` for the next transaction that writes.
      audit: called after every commit.
    """

    def __init__(self, real: Database, process: Process, draw_fate: Callable[[], str], audit: Callable[[str], None]):
        self.name = ":memory:"
        self._real, self._process, self._draw_fate, self._audit = real, process, draw_fate, audit

    def write(self, work: Callable[[Session], T], *, synced: bool = True) -> T:
        self._process.check()
        match fate := self._draw_fate():
            case "full":
                raise DiskFullError("disk full on purpose")
            case "broken":
                raise DatabaseError("input/output error on purpose")
            case "twice" | "crash before commit":
                self._undone(work)
                if fate != "twice":
                    self._die()
        result = self._real.write(work, synced=synced)
        self._audit(self._process.name)
        if fate == "crash after commit":
            self._die()
        if fate == "uncertain":
            raise DatabaseError("the connection was lost while the transaction was being committed")
        return result

    def read(self, work: Callable[[Session], T]) -> T:
        self._process.check()
        return self._real.read(work)

    def close(self) -> None:
        """The connection that all share stays open."""

    def _undone(self, work: Callable[[Session], T]) -> None:
        class _UndoneError(Exception):
            pass

        def run_and_fail(session: Session) -> None:
            work(session)
            raise _UndoneError

        try:
            self._real.write(run_and_fail)
        except _UndoneError:
            return

    def _die(self) -> None:
        self._process.kill()
        raise ProcessDiedError(self._process.name)


@dataclass(frozen=True)
class Snapshot:
    """A committed checkpoint.

    Attributes:
      history: (step, group ids) of all training behind the parameters that it holds.
    """

    position: Position
    history: tuple[tuple[int, tuple[str, ...]], ...]

    @property
    def completed_steps(self) -> int:
        return self.position.completed_steps

    @property
    def trained(self) -> set[str]:
        return {group_id for _, ids in self.history for group_id in ids}


class SimulatedCheckpoints:
    """Committed checkpoints by step; a commit is atomic."""

    def __init__(self, keep: int) -> None:
        self._keep = keep
        self._snapshots: dict[int, Snapshot] = {}

    def latest(self) -> Snapshot | None:
        return self._snapshots[max(self._snapshots)] if self._snapshots else None

    def next_life(self, turn: int) -> int:
        """The number of a learner's life that begins now, as `checkpoints.next_life` has it."""
        return turn + max((snapshot.position.life for snapshot in self._snapshots.values()), default=0)

    def commit(self, snapshot: Snapshot) -> None:
        self._snapshots[snapshot.completed_steps] = snapshot
        for step in sorted(self._snapshots)[: -self._keep]:
            del self._snapshots[step]


def memory_database() -> Database:
    return open_database(":memory:")


def rows_of(database: Database) -> list[tuple[str, str, int]]:
    """(group id, state, oldest version) of every row."""
    return database.read(lambda session: session.execute("SELECT group_id, state, oldest_version FROM groups"))
