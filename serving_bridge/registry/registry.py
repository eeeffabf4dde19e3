"""The registry of a deployment: an index in a database, weights in a weight store of each namespace, files beside them.

Weights are copied in, whole, so that a run's own store may forget them, and a training cluster may be gone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from learner_jax.contracts import WeightManifest
from learner_jax.runtime import Waits, crash_point, make_folder
from serving_bridge.database import open_database
from serving_bridge.registry.entry import (
    ENTRY_SCHEMA,
    Candidate,
    Entry,
    RegisteredFile,
    checked_name,
    shape_sha256,
)
from serving_bridge.registry.errors import RegistryError, RegistryIntegrityError
from serving_bridge.registry.index import RegistryIndex
from serving_bridge.registry.kept_entries import KeptEntries
from serving_bridge.registry.kept_files import KeptFiles, tokenizer_sha256
from serving_bridge.registry.kept_weights import KeptWeights
from serving_bridge.registry.leases import RegistryLease
from serving_bridge.registry.place import storage_of, use_storage
from serving_bridge.registry.rows import Standing
from serving_bridge.registry.schema import REGISTRY
from serving_bridge.registry.signatures import TrustedKeys
from serving_bridge.registry.traffic import Placement, TrafficSplit
from serving_bridge.weights import (
    ShelfOptions,
    Tensor,
    WeightStore,
    read_version,
)

_LEASE_S = 60.0
#: Stages whose weights may be taken back to at once, and stay.
_KEPT_STAGES = frozenset({"shadow", "canary", "stable"})


@dataclass(frozen=True)
class Retention:
    """Which weights stay: those that an alias names, of the newest `keep` entries, and of entries in service."""

    keep: int

    def __post_init__(self) -> None:
        if self.keep < 1:
            raise RegistryError(f"keep is {self.keep}, expected at least 1: the newest entry's weights stay")


class Registry:
    """Entries, aliases and files of a deployment.

    Layout of `root`: `index.sqlite` (unless a database is named), `weights/<namespace>/v00000001/...`, `files/...`.
    The index may name object storage for the last two (`use_storage`).

    Args:
      root: a folder; it is made if absent.
      database: URL of the index, by default the file in `root`.
      timeout_s: bound on waiting for the database.
      files_wait_s: bound on waiting for another process that registers or removes weights in the same namespace.
      storage: URL of the object storage that a new registry uses; "" for what the index says, or the folder.
      options: how object storage is used.
      trusted: keys of which one must have signed an entry before its weights are loaded or an alias moves to it;
        None where signatures are not demanded.
      clock: seconds since the epoch.

    Raises:
      DatabaseError: the index can't be opened.
      RegistryError: `storage` is another place than the index says, or none.
      StorageSetupError: object storage can't be used from here.
    """

    def __init__(
        self,
        root: Path,
        *,
        database: str | None = None,
        timeout_s: float = 30.0,
        files_wait_s: float = 600.0,
        storage: str = "",
        options: ShelfOptions | None = None,
        trusted: TrustedKeys | None = None,
        clock: Callable[[], float] = time.time,
        waits: Waits | None = None,
    ) -> None:
        self.root = root
        make_folder(root)
        self._db = open_database(database or root / "index.sqlite", timeout_s=timeout_s, schema=REGISTRY)
        self.index = RegistryIndex(self._db, clock=clock)
        if storage:
            use_storage(self._db, storage.rstrip("/"))
        place, options = storage_of(self._db) or root, options or ShelfOptions()
        self.files = KeptFiles(f"{place}/files", timeout_s=options.timeout_s)
        self.weights = KeptWeights(f"{place}/weights", self.index, options, wait_s=files_wait_s, waits=waits or Waits())
        self._entries = KeptEntries(self.index, self.files, self.weights, trusted)

    def close(self) -> None:
        self._db.close()

    def register(
        self,
        namespace: str,
        source: WeightStore,
        version: int,
        files: dict[str, bytes],
        candidate: Candidate,
        *,
        actor: str,
    ) -> Entry:
        """Copies a version of a run's weight store and adds it as an entry.

        Args:
          files: name -> content of what the model needs beside its weights.

        Raises:
          StoreError: there is no such version, or it is damaged; nothing was registered.
          RegistryError: the parent does not exist, or has another tokenizer or shape.
        """
        manifest = source.best_manifest(version)
        tensors = read_version(source, version)
        return self.add(namespace, tensors, manifest, files, candidate, actor=actor)

    def add(
        self,
        namespace: str,
        tensors: dict[str, Tensor],
        manifest: WeightManifest,
        files: dict[str, bytes],
        candidate: Candidate,
        *,
        actor: str,
    ) -> Entry:
        """As `register`, of tensors that were read and checked; `manifest` gives their entries and golden prompts."""
        _check_parent(self.index, namespace, candidate.parent, manifest, files)
        with self.weights.lease(namespace) as lease:
            kept = [self.files.keep(name, content) for name, content in sorted(files.items())]
            crash_point("registry.files")
            weight_version = self.weights.keep(namespace, tensors, manifest)
            crash_point("registry.weights")
            num_parameters = sum(tensor.words.size for tensor in tensors.values())

            def make(number: int, previous: str, now_s: float) -> Entry:
                return Entry(
                    schema=ENTRY_SCHEMA,
                    namespace=namespace,
                    number=number,
                    previous=previous,
                    parent=candidate.parent,
                    origin=candidate.origin,
                    content=manifest.content_sha256,
                    shape=shape_sha256(manifest.tensors),
                    tokenizer=tokenizer_sha256(files),
                    weight_version=weight_version,
                    num_parameters=num_parameters,
                    dtype=", ".join(sorted({entry.dtype for entry in manifest.tensors})),
                    files=kept,
                    data=list(candidate.data),
                    versions=dict(candidate.versions),
                    consent=candidate.consent,
                    note=candidate.note,
                    actor=actor,
                    created_s=now_s,
                )

            return self.index.add(namespace, make, lease=lease)

    def add_report(
        self, namespace: str, number: int, name: str, content: bytes, *, verdict: str, actor: str, reason: str = ""
    ) -> RegisteredFile:
        """Keeps the report of an evaluation with an entry."""
        file = self.files.keep(name, content)
        body = {"verdict": verdict, "file": msgspec.to_builtins(file)}
        self.index.add_report(namespace, number, body, actor=actor, reason=reason)
        return file

    @contextmanager
    def lease(self, namespace: str, holder: str, *, take_over: bool = False) -> Iterator[RegistryLease]:
        """The aliases of a namespace for one command. Raises `NotHolderError` if another holds them."""
        lease = self.index.aliases.take_lease(namespace, holder, _LEASE_S, by_force=take_over)
        try:
            yield lease
        finally:
            self.index.aliases.release_lease(lease)

    def move(
        self, namespace: str, aliases: Mapping[str, int | None], *, holder: str, take_over: bool = False, **more: Any
    ) -> int:
        """As `Aliases.move`, under a lease of its own, once every file of the entries has been hashed.

        Raises:
          RegistryIntegrityError: a file is not what was registered; names it. Nothing was moved.
        """
        for number in sorted({number for number in aliases.values() if number is not None}):
            standing = self.index.standing(namespace, number)
            if standing.has_weights and (problems := self.problems(standing)):
                raise RegistryIntegrityError("; ".join(problems))
        with self.lease(namespace, holder, take_over=take_over) as lease:
            return self.index.aliases.move(lease, aliases, **more)

    def traffic(self, namespace: str) -> TrafficSplit:
        """As `Aliases.traffic`."""
        return self.index.aliases.traffic(namespace)

    def placement(self, namespace: str) -> Placement:
        """As `Aliases.placement`."""
        return self.index.aliases.placement(namespace)

    def manifest(self, standing: Standing) -> WeightManifest:
        """As `KeptEntries.manifest`."""
        return self._entries.manifest(standing)

    def problems(self, standing: Standing) -> list[str]:
        """As `KeptEntries.problems`."""
        return self._entries.problems(standing)

    def sign(self, standing: Standing, private_key: Path, *, password: str | None = None, actor: str) -> str:
        """As `KeptEntries.sign`."""
        return self._entries.sign(standing, private_key, password=password, actor=actor)

    def export(self, standing: Standing, folder: Path, *, readme: str) -> None:
        """As `KeptEntries.export`."""
        self._entries.export(standing, folder, readme=readme)

    def retain(self, namespace: str, retention: Retention, *, actor: str) -> list[int]:
        """Removes weights that nobody needs, and returns the entries that lost them; rows, reports and files stay.

        What an alias names, a shadow, canary or stable entry, an entry that an alias left last, and the newest
        entries are kept. Weights that are shared with one of these stay, too.
        """
        with self.weights.lease(namespace) as lease:
            gone = self.index.forget_weights(
                namespace,
                self._not_needed(namespace, retention),
                actor=actor,
                reason=f"retention: keep {retention.keep}",
            )
            crash_point("registry.forgotten")
            self.weights.sweep(namespace, lease)
        return gone

    def _not_needed(self, namespace: str, retention: Retention) -> list[int]:
        standings = self.index.entries(namespace, limit=2**31 - 1)
        newest = {standing.entry.number for standing in standings[: retention.keep]}
        left = {move.old for move in self.index.aliases.history(namespace, limit=10) if move.old is not None}
        kept = [
            standing
            for standing in standings
            if standing.aliases
            or standing.stage in _KEPT_STAGES
            or standing.entry.number in newest
            or standing.entry.number in left
        ]
        versions = {standing.entry.weight_version for standing in kept}
        return [
            standing.entry.number
            for standing in standings
            if standing.has_weights and standing.entry.weight_version not in versions
        ]


def _check_parent(
    index: RegistryIndex, namespace: str, parent: int | None, manifest: WeightManifest, files: dict[str, bytes]
) -> None:
    checked_name(namespace, "namespace")
    if parent is None:
        return
    entry = index.standing(namespace, parent).entry
    if entry.shape != shape_sha256(manifest.tensors):
        raise RegistryError(
            f"these weights have another shape than their parent {entry.id} ({entry.num_parameters} parameters of "
            f"{entry.dtype}): register them without a parent, or in a namespace of their own"
        )
    if entry.tokenizer != tokenizer_sha256(files):
        raise RegistryError(
            f"this model has another tokenizer.json than its parent {entry.id}: conversations can't go on from one "
            f"to the other; register it without a parent, or in a namespace of its own"
        )
