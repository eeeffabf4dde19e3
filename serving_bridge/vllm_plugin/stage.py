"""Reads and checks one version in a thread of the worker while the server serves; then nothing is left to refuse."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from learner_jax.contracts import ContractError, TensorEntry, WeightManifest
from learner_jax.runtime import WeirError
from serving_bridge.storage import StorageError
from serving_bridge.vllm_plugin.live import LiveWeights, Patch
from serving_bridge.weights import StoreError, Tensor, WeightStore, manifests_to_load, read_path

StageState = Literal["idle", "reading", "staged", "applied", "failed"]


class StageError(WeirError, ValueError):
    """A version must not be loaded into this model; says what was expected and what came."""


@dataclass(frozen=True)
class ModelTensors:
    """What the model takes: HF name -> shape, and its dtype by numpy's name."""

    shapes: Mapping[str, tuple[int, ...]]
    dtype: str


@dataclass(frozen=True)
class Applied:
    """The version that a worker's weights are of."""

    version: int
    content_sha256: str


@dataclass(frozen=True)
class Staged:
    """A version that passed every check, in the form in which it will be applied.

    Attributes:
      is_update: False for a version that replaces all tensors.
      tensors: in host memory: all of the model's; for an update those that it changes and the model can't give back.
      patches: an update's elements in the model's storages, on its device; None where they can't be written singly.
    """

    version: int
    content_sha256: str
    is_update: bool
    tensors: Mapping[str, Tensor]
    patches: list[Patch] | None


class Stager:
    """Owns the one staging thread of a worker, what it staged, and the tensors that the model can't give back.

    Those are tensors of which a worker holds a part only (tensor parallelism), or all of them where the model's
    loaders do more than copy: they stay in host memory, since an update applies to them.

    Args:
      any_order: also versions below the one that the worker holds; else versions only go up.
      kept_versions: whole versions that stay in host memory beside the last one applied. Going back to one of them
        reads nothing.
    """

    def __init__(
        self, expected: ModelTensors, live: LiveWeights, *, any_order: bool = False, kept_versions: int = 0
    ) -> None:
        self._expected = expected
        self._live = live
        self._any_order, self._num_remembered = any_order, kept_versions + 1 if kept_versions else 0
        #: versions that were applied whole, the last one last
        self._remembered: dict[Applied, Staged] = {}
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._state: StageState = "idle"
        self._error, self._damaged = "", False
        self._staged: Staged | None = None
        self._kept: dict[str, Tensor] = {}

    def begin(
        self, store: WeightStore, version: int, content_sha256: str, applied: Applied | None, sealed: str = ""
    ) -> None:
        """Starts staging a version of a store; drops whatever was staged before.

        Args:
          applied: what the worker's weights are, None if of no version.
          sealed: as of `manifests_to_load`.

        Raises:
          StageError: another version is being read.
        """
        with self._lock:
            if self._thread is not None and self._thread.is_alive():
                raise StageError(f"{self._thread.name} has not ended; expected one round at a time")
            self._staged, self._error, self._damaged = None, "", False
            if applied == Applied(version, content_sha256):
                self._state = "applied"
                return
            if (remembered := self._remembered.get(Applied(version, content_sha256))) is not None:
                self._staged, self._state = remembered, "staged"
                return
            self._state = "reading"
            self._thread = threading.Thread(
                target=self._run,
                args=(store, version, content_sha256, applied, sealed),
                name=f"staging of version {version}",
                daemon=True,
            )
            self._thread.start()

    def status(self) -> tuple[StageState, int | None, str, bool]:
        """(state, version staged, error of a failed staging, whether the store itself is at fault)."""
        with self._lock:
            return self._state, self._staged.version if self._staged else None, self._error, self._damaged

    def get(self, version: int, content_sha256: str) -> Staged:
        """The staged version. Raises `StageError` unless exactly that one is staged."""
        with self._lock:
            staged = self._staged
        if staged is None or (staged.version, staged.content_sha256) != (version, content_sha256):
            got = f"version {staged.version} ({staged.content_sha256[:12]})" if staged else "nothing"
            raise StageError(f"version {version} ({content_sha256[:12]}) is not staged, got {got}; stage it first")
        return staged

    def finish(self, staged: Staged) -> None:
        """Forgets what is applied now, but for the tensors that the next update will need and the model can't give."""
        if not staged.is_update:
            self._kept = {}
            self._remember(staged)
        self._kept |= {name: tensor for name, tensor in staged.tensors.items() if not self._live.holds(name)}
        self.clear()

    def _remember(self, staged: Staged) -> None:
        if not self._num_remembered:
            return
        key = Applied(staged.version, staged.content_sha256)
        self._remembered.pop(key, None)
        self._remembered[key] = staged
        while len(self._remembered) > self._num_remembered:
            del self._remembered[next(iter(self._remembered))]

    def clear(self) -> None:
        """Forgets the staged tensors and frees their memory."""
        with self._lock:
            if self._state != "reading":
                self._staged, self._state, self._error, self._damaged = None, "idle", "", False

    def _run(self, store: WeightStore, version: int, content_sha256: str, applied: Applied | None, sealed: str) -> None:
        state: StageState = "failed"
        staged, error, damaged = None, "", False
        try:
            staged = self._read(store, version, content_sha256, applied, sealed)
            state = "staged"
        except Exception as caught:  # noqa: BLE001 - a thread has no caller; the status hands it on
            error = f"{type(caught).__name__}: {caught}"
            # Storage that can't be reached holds no damage that another form of the version would mend.
            is_away = isinstance(caught, StorageError)
            damaged = isinstance(caught, StoreError | ContractError | OSError) and not is_away
        with self._lock:
            self._staged, self._state, self._error, self._damaged = staged, state, error, damaged

    def _read(
        self, store: WeightStore, version: int, content_sha256: str, applied: Applied | None, sealed: str
    ) -> Staged:
        """Reads one version and makes every check there is before a model is touched.

        Raises:
          StageError: other content, older version, or tensors that are not exactly the model's.
          StoreError: what the store holds is missing or damaged, or applies to other weights than these.
        """
        manifest = store.best_manifest(version)
        if manifest.content_sha256 != content_sha256:
            raise StageError(
                f"version {version} of {store.address} is {manifest.content_sha256}, expected {content_sha256}"
            )
        check_order(manifest, None if self._any_order else applied)
        check_declared(manifest, self._expected)
        path = manifests_to_load(store, manifest, applied.version if applied is not None else None, sealed)
        is_update = path[0].format == "sparse"
        tensors: dict[str, Tensor] = {}
        changes: list[tuple[str, np.ndarray, np.ndarray, np.ndarray]] = []
        for changed in read_path(store, path, self._base if is_update else None):
            name = changed.entry.name
            if changed.indices is None:
                tensors[name] = changed.tensor
            elif changed.indices.size:
                assert changed.old is not None
                changes.append((name, changed.indices, changed.tensor.words[changed.indices], changed.old))
                if not self._live.holds(name):
                    tensors[name] = changed.tensor
        patches = self._live.patches(changes) if is_update and self._live.routed else None
        return Staged(version, content_sha256, is_update, tensors, patches)

    def _base(self, entry: TensorEntry) -> Tensor:
        return self._live.read(entry) if self._live.holds(entry.name) else self._kept[entry.name]


def check_order(manifest: WeightManifest, applied: Applied | None) -> None:
    """Versions only go up."""
    if applied is not None and manifest.version <= applied.version:
        raise StageError(
            f"version {manifest.version} ({manifest.content_sha256[:12]}) is not newer than version {applied.version} "
            f"({applied.content_sha256[:12]}), which this worker holds; to roll back, publish the old weights as a new "
            f"version"
        )


def check_declared(manifest: WeightManifest, expected: ModelTensors) -> None:
    """The manifest's names, shapes and dtype are exactly the model's."""
    declared = {entry.name: entry for entry in manifest.tensors}
    missing = sorted(expected.shapes.keys() - declared.keys())
    unknown = sorted(declared.keys() - expected.shapes.keys())
    if missing or unknown:
        raise StageError(
            f"version {manifest.version} has not the model's tensors: {len(missing)} missing {missing[:4]}, "
            f"{len(unknown)} unknown {unknown[:4]}"
        )
    for name, entry in declared.items():
        if tuple(entry.shape) != expected.shapes[name]:
            raise StageError(f"{name} has shape {tuple(entry.shape)}, expected {expected.shapes[name]}")
        if entry.dtype != expected.dtype:
            raise StageError(
                f"{name} has dtype {entry.dtype}, but the server computes in {expected.dtype}; set "
                f"learner.publish_dtype and serving.dtype to the same"
            )
