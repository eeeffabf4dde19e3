"""Reads and checks one version's tensors in a thread of the worker, while the server goes on serving."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import load

from learner_jax.contracts import WeightManifest, decode_manifest
from serving_bridge.weight_store import MANIFEST_NAME, check_content, check_file

StageState = Literal["idle", "reading", "staged", "failed"]


class StageError(ValueError):
    """A version must not be loaded into this model; says what was expected and what came."""


@dataclass(frozen=True)
class ModelTensors:
    """What the model takes: HF name -> shape, and its dtype by numpy's name."""

    shapes: Mapping[str, tuple[int, ...]]
    dtype: str


@dataclass(frozen=True)
class Staged:
    """Tensors in host memory that passed every check; nothing is left to refuse."""

    version: int
    content_sha256: str
    tensors: Mapping[str, torch.Tensor]


class Stager:
    """Owns the one staging thread of a worker and what it staged."""

    def __init__(self, expected: ModelTensors) -> None:
        self._expected = expected
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._state: StageState = "idle"
        self._error = ""
        self._staged: Staged | None = None

    def begin(self, folder: Path, content_sha256: str, applied: int | None) -> None:
        """Starts staging the version in `folder`; drops whatever was staged before.

        Raises:
          StageError: another version is being read.
        """
        with self._lock:
            if self._thread is not None and self._thread.is_alive():
                raise StageError(f"{self._thread.name} is still being read; expected one round at a time")
            self._staged, self._state, self._error = None, "reading", ""
            self._thread = threading.Thread(
                target=self._run, args=(folder, content_sha256, applied), name=f"staging of {folder}", daemon=True
            )
            self._thread.start()

    def status(self) -> tuple[StageState, int | None, str]:
        """(state, version staged, error of a failed staging)."""
        with self._lock:
            return self._state, self._staged.version if self._staged else None, self._error

    def get(self, version: int, content_sha256: str) -> Staged:
        """The staged version. Raises `StageError` unless exactly that one is staged."""
        with self._lock:
            staged = self._staged
        if staged is None or (staged.version, staged.content_sha256) != (version, content_sha256):
            got = f"version {staged.version} ({staged.content_sha256[:12]})" if staged else "nothing"
            raise StageError(f"version {version} ({content_sha256[:12]}) is not staged, got {got}; stage it first")
        return staged

    def clear(self) -> None:
        """Forgets the staged tensors and frees their memory."""
        with self._lock:
            if self._state != "reading":
                self._staged, self._state, self._error = None, "idle", ""

    def _run(self, folder: Path, content_sha256: str, applied: int | None) -> None:
        state: StageState = "failed"
        staged, error = None, ""
        try:
            staged = read_version(folder, content_sha256, applied, self._expected)
            state = "staged"
        except Exception as caught:  # noqa: BLE001 - a thread has no caller; the status hands it on
            error = f"{type(caught).__name__}: {caught}"
        with self._lock:
            self._staged, self._state, self._error = staged, state, error


def read_version(folder: Path, content_sha256: str, applied: int | None, expected: ModelTensors) -> Staged:
    """Reads one version and makes every check there is before a model is touched.

    Raises:
      StageError: wrong base, older version, or tensors that are not exactly the model's.
      WeightIntegrityError: a file's bytes are not those of the manifest.
    """
    manifest = decode_manifest((folder / MANIFEST_NAME).read_bytes())
    if manifest.content_sha256 != content_sha256:
        raise StageError(f"{folder} holds content {manifest.content_sha256}, expected {content_sha256}")
    check_content(manifest)
    check_base(manifest, applied)
    check_declared(manifest, expected)
    tensors: dict[str, torch.Tensor] = {}
    for file in manifest.files:
        path = folder / file.name
        data = path.read_bytes()
        check_file(path, file, len(data), hashlib.sha256(data).hexdigest())
        for name, tensor in load(data).items():
            if name in tensors:
                raise StageError(f"tensor {name} is in two files of version {manifest.version}")
            tensors[name] = tensor
    check_tensors(manifest, tensors)
    return Staged(manifest.version, manifest.content_sha256, tensors)


def check_base(manifest: WeightManifest, applied: int | None) -> None:
    """A sparse update fits one base only; and versions only go up (the same one again is a retry)."""
    if manifest.base_version is not None and manifest.base_version != applied:
        raise StageError(
            f"version {manifest.version} applies to base version {manifest.base_version}, but this worker holds "
            f"{applied if applied is not None else 'the weights it started with'}; send a full version"
        )
    if applied is not None and manifest.version < applied:
        raise StageError(
            f"version {manifest.version} is older than version {applied}, which this worker holds; to roll back, "
            f"publish the old weights as a new version"
        )


def check_declared(manifest: WeightManifest, expected: ModelTensors) -> None:
    """The manifest's names, shapes and dtype are exactly the model's."""
    declared = {entry.name: entry for entry in manifest.tensors}
    if len(declared) != len(manifest.tensors):
        raise StageError(f"version {manifest.version} lists a tensor twice")
    missing = sorted(expected.shapes.keys() - declared.keys())
    unknown = sorted(declared.keys() - expected.shapes.keys())
    if missing or unknown:
        raise StageError(
            f"version {manifest.version} has not the model's tensors: {len(missing)} missing {missing[:4]}, "
            f"{len(unknown)} unknown {unknown[:4]}"
        )
    files = {file.name for file in manifest.files}
    for name, entry in declared.items():
        if tuple(entry.shape) != expected.shapes[name]:
            raise StageError(f"{name} has shape {tuple(entry.shape)}, expected {expected.shapes[name]}")
        if entry.dtype != expected.dtype:
            raise StageError(
                f"{name} has dtype {entry.dtype}, but the server computes in {expected.dtype}; set "
                f"learner.publish_dtype and serving.dtype to the same"
            )
        if entry.file not in files:
            raise StageError(f"{name} is said to be in {entry.file!r}, expected one of {sorted(files)}")


def check_tensors(manifest: WeightManifest, tensors: Mapping[str, torch.Tensor]) -> None:
    """What was read is what the manifest declares, and finite."""
    if tensors.keys() != {entry.name for entry in manifest.tensors}:
        raise StageError(f"the files of version {manifest.version} hold other tensors than its manifest lists")
    for entry in manifest.tensors:
        tensor = tensors[entry.name]
        dtype = str(tensor.dtype).removeprefix("torch.")
        if (list(tensor.shape), dtype) != (entry.shape, entry.dtype):
            raise StageError(
                f"{entry.name} is {dtype}{list(tensor.shape)} in its file, expected {entry.dtype}{entry.shape}"
            )
        if not bool(torch.isfinite(tensor).all()):
            raise StageError(f"{entry.name} of version {manifest.version} holds values that are not finite")
