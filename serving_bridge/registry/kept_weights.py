"""Weights of entries: a weight store for each namespace, in which equal weights are kept once."""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from learner_jax.contracts import ContractError, WeightManifest
from learner_jax.runtime import Waits
from serving_bridge.database import DatabaseError
from serving_bridge.registry.entry import checked_name
from serving_bridge.registry.errors import NotHolderError, RegistryError
from serving_bridge.registry.index import RegistryIndex
from serving_bridge.registry.leases import RegistryLease
from serving_bridge.weights import ShelfOptions, StoreError, Tensor, VersionHeader, VersionWriter, WeightStore

#: While some are copied in or removed: a process that died keeps others out so long.
_LEASE_S = 3600.0
_POLL_S = 0.2


class KeptWeights:
    """The weight stores below a folder, or a URL of object storage.

    Args:
      options: how object storage is used; a folder needs none of it.
      wait_s: bound on waiting for another process that copies or removes weights in the same namespace.
    """

    def __init__(
        self, root: str | Path, index: RegistryIndex, options: ShelfOptions, *, wait_s: float, waits: Waits
    ) -> None:
        self._root, self._index, self._options = root, index, options
        self._wait_s, self._waits = wait_s, waits
        #: that could not be given back, since the index could not be written
        self._left: list[RegistryLease] = []

    def store(self, namespace: str) -> WeightStore:
        """The weight store of a namespace; serving fleets load from it."""
        name = checked_name(namespace, "namespace")
        return WeightStore(f"{self._root}/{name}", f"registry-{name}", self._options)

    def keep(self, namespace: str, tensors: dict[str, Tensor], manifest: WeightManifest) -> int:
        """Copies weights unless the same are kept already, whole; returns their version. The caller holds `lease`."""
        kept = self._index.weights_of(namespace, manifest.content_sha256)
        store = self.store(namespace)
        if kept is not None:
            try:
                store.verify(store.best_manifest(kept))
                return kept
            except (StoreError, ContractError):
                pass  # kept once more; entries of the damaged copy are refused, by name, when verified, moved or served
        header = VersionHeader(manifest.step, manifest.golden)
        return VersionWriter(store).publish_full(tensors, manifest.tensors, header).version

    def sweep(self, namespace: str, lease: RegistryLease) -> None:
        """Deletes weights whose entries gave them up, and those of registrations that were killed."""
        store = self.store(namespace)
        used = self._index.weights_in_use(namespace)
        for version in store.claimed()[:-1]:  # the highest number tells the next one
            if version not in used:
                self._index.aliases.check_lease(lease)
                store.shelf.remove(version)

    @contextmanager
    def lease(self, namespace: str) -> Iterator[RegistryLease]:
        """Keeps other processes from registering and removing weights of a namespace.

        Raises:
          RegistryError: another does so for too long.
        """
        holder = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
        name = f"{checked_name(namespace, 'namespace')}.weights"
        with self._waits.waiting(
            f"the weights of {namespace}",
            on="another process that registers or removes some",
            limit_s=self._wait_s,
            setting="files_wait_s",
            error=RegistryError,
        ) as wait:
            while True:
                try:
                    while self._left:
                        self._index.aliases.release_lease(self._left[-1])
                        self._left.pop()
                    found = self._index.aliases.holder(name)
                    by_force = found is not None and _has_ended(found.holder)
                    lease = self._index.aliases.take_named_lease(name, holder, _LEASE_S, by_force=by_force)
                    break
                except NotHolderError:
                    wait.sleep(_POLL_S)
        try:
            yield lease
        finally:
            try:
                self._index.aliases.release_lease(lease)
            except DatabaseError:  # a full disk, mostly: the error that led here is the one to tell
                self._left.append(lease)


def _has_ended(holder: str) -> bool:
    """Whether a holder was a process of this host that is no more. If it is, after all, the token keeps it out."""
    host, _, rest = holder.rpartition(":")[0].rpartition(":")
    return host == socket.gethostname() and rest.isdecimal() and not psutil.pid_exists(int(rest))
