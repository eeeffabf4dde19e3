"""A folder of immutable weight versions: files first, the manifest last, by atomic rename.

Layout: `root/v00000007/{weights.safetensors, manifest.json}`. A folder without a manifest is a version that never
came to exist; its number stays taken. Free of torch and JAX.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import math
import os
import re
import shutil
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

import numpy as np

from learner_jax.contracts import (
    MANIFEST_SCHEMA,
    GoldenPrompt,
    TensorEntry,
    WeightFile,
    WeightManifest,
    decode_manifest,
    encode_manifest,
)

MANIFEST_NAME = "manifest.json"
WEIGHTS_NAME = "weights.safetensors"

_FOLDER = re.compile(r"v(\d{8,})")
_MAX_CLAIMS = 1000
_READ_BYTES = 1 << 20
#: numpy's name of a dtype -> its code in the safetensors header
_SAFETENSORS_DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}


class StoreError(RuntimeError):
    """The weight store can't do what was asked; says what to change."""


class WeightIntegrityError(StoreError):
    """A stored file is not what its manifest says."""


class WeightStore:
    """Policy versions of one run under one folder; implements `contracts.WeightPublisher`.

    Many processes may read while one publishes. Version numbers start at 1, only go up and are never reused: a number
    is claimed by making its folder, and the highest folder is never deleted.
    """

    def __init__(self, root: str | Path, run: str) -> None:
        self.root = Path(root)
        self.run = run

    def folder(self, version: int) -> Path:
        return self.root / f"v{version:08d}"

    def versions(self) -> list[int]:
        """Versions that exist (have a manifest), in ascending order."""
        return [version for version in self._claimed() if (self.folder(version) / MANIFEST_NAME).is_file()]

    def newest(self) -> WeightManifest | None:
        """Manifest of the highest version, None while nothing is published."""
        versions = self.versions()
        return self.manifest(versions[-1]) if versions else None

    def manifest(self, version: int) -> WeightManifest:
        """Reads one version's manifest.

        Raises:
          StoreError: there is no such version.
          ContractError: the manifest is damaged or of another schema.
        """
        path = self.folder(version) / MANIFEST_NAME
        try:
            manifest = decode_manifest(path.read_bytes())
        except FileNotFoundError:
            raise StoreError(
                f"weight store {self.root} holds no version {version}; it holds {self.versions()}"
            ) from None
        if manifest.version != version:
            raise WeightIntegrityError(f"{path} says version {manifest.version}, expected {version}")
        return manifest

    def publish(
        self,
        tensors: Iterable[tuple[str, np.ndarray]],
        *,
        step: int,
        golden: Sequence[GoldenPrompt],
        version: int | None = None,
    ) -> WeightManifest:
        """Stores a full set of tensors under HF names as a policy version and returns its manifest.

        Args:
          tensors: (HF name, array) pairs; float32, float16 or bfloat16 (ml_dtypes) arrays of any shape.
          step: optimizer steps behind these weights.
          golden: prompts with log-probs computed with these very weights.
          version: as `claim` gave it; claimed here by default.

        Raises:
          ValueError: no tensors, a name given twice, an unsupported dtype or a malformed golden prompt.
          StoreError: the disk is full, or the folder belongs to another run. Nothing becomes visible.
        """
        arrays = _checked_tensors(tensors)
        for prompt in golden:
            if len(prompt.logprobs) != len(prompt.tokens) - 1:
                raise ValueError(
                    f"a golden prompt of {len(prompt.tokens)} tokens has {len(prompt.logprobs)} log-probs, "
                    f"expected {len(prompt.tokens) - 1}"
                )
        parent = self.newest()
        if parent is not None and parent.run != self.run:
            raise StoreError(
                f"weight store {self.root} belongs to run {parent.run!r}, expected {self.run!r}; set store.weights "
                f"to another folder"
            )
        version = self.claim() if version is None else version
        folder = self.folder(version)
        try:
            file = _write_safetensors(folder / WEIGHTS_NAME, arrays)
            manifest = WeightManifest(
                schema=MANIFEST_SCHEMA,
                version=version,
                base_version=None,
                format="full",
                step=step,
                parent=parent.version if parent else None,
                run=self.run,
                content_sha256=content_sha256([file]),
                files=[file],
                tensors=[
                    TensorEntry(name=name, shape=list(array.shape), dtype=array.dtype.name, file=file.name)
                    for name, array in arrays.items()
                ],
                golden=list(golden),
            )
            _write_manifest(folder, manifest)
        except BaseException as error:
            _empty_folder(folder)
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                needed = sum(array.nbytes for array in arrays.values())
                raise StoreError(
                    f"no space for version {version} in {self.root}: it needs {needed} bytes; free some, lower "
                    f"store.keep_versions, or set store.weights to a larger disk"
                ) from error
            raise
        return manifest

    def verify(self, manifest: WeightManifest) -> None:
        """Hashes every file of a version. Raises `WeightIntegrityError` naming file, expected and got."""
        folder = self.folder(manifest.version)
        for file in manifest.files:
            path = folder / file.name
            try:
                with path.open("rb") as stream:
                    digest = hashlib.sha256()
                    while chunk := stream.read(_READ_BYTES):
                        digest.update(chunk)
            except FileNotFoundError:
                raise WeightIntegrityError(f"{path} is missing, expected {file.num_bytes} bytes") from None
            check_file(path, file, path.stat().st_size, digest.hexdigest())
        check_content(manifest)

    def collect(self, keep: int, in_use: Collection[int] = ()) -> list[int]:
        """Deletes all but the newest `keep` versions, sparing those in use; returns the versions deleted.

        The manifest goes first, so that a version is never seen with files missing. Leftovers of crashed publishes
        below the oldest kept version go too.
        """
        if keep < 1:
            raise ValueError(f"keep is {keep}, expected at least 1: the newest version is never deleted")
        versions = self.versions()
        kept = set(versions[-keep:]) | set(in_use)
        if not versions:
            return []
        deleted = [version for version in versions if version not in kept]
        oldest = versions[-keep:][0]
        for version in self._claimed():
            if version < oldest and version not in kept:
                folder = self.folder(version)
                (folder / MANIFEST_NAME).unlink(missing_ok=True)
                _sync_folder(folder)
                shutil.rmtree(folder)
        return deleted

    def _claimed(self) -> list[int]:
        try:
            names = [path.name for path in self.root.iterdir()]
        except FileNotFoundError:
            return []
        return sorted(int(match[1]) for name in names if (match := _FOLDER.fullmatch(name)))

    def claim(self) -> int:
        """Takes the next version number; one that is never published stays taken and never exists.

        Raises:
          StoreError: other processes keep taking numbers.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        for _ in range(_MAX_CLAIMS):
            version = max(self._claimed(), default=0) + 1
            try:
                self.folder(version).mkdir()
            except FileExistsError:
                continue
            _sync_folder(self.root)
            return version
        raise StoreError(f"could not claim a version in {self.root} in {_MAX_CLAIMS} tries; who else publishes there?")


def content_sha256(files: Sequence[WeightFile]) -> str:
    """sha256 over the files' hashes in order (hexadecimal)."""
    return hashlib.sha256("".join(file.sha256 for file in files).encode()).hexdigest()


def check_file(path: Path, file: WeightFile, num_bytes: int, sha256: str) -> None:
    """Raises `WeightIntegrityError` unless a file's size and hash are those of the manifest."""
    if num_bytes != file.num_bytes:
        raise WeightIntegrityError(f"{path} has {num_bytes} bytes, expected {file.num_bytes}")
    if sha256 != file.sha256:
        raise WeightIntegrityError(f"{path} has sha256 {sha256}, expected {file.sha256}")


def check_content(manifest: WeightManifest) -> None:
    """Raises `WeightIntegrityError` unless a manifest's content hash fits its own list of files."""
    content = content_sha256(manifest.files)
    if content != manifest.content_sha256:
        raise WeightIntegrityError(
            f"manifest of version {manifest.version}: its files give content_sha256 {content}, "
            f"expected {manifest.content_sha256}"
        )


def _checked_tensors(tensors: Iterable[tuple[str, np.ndarray]]) -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray] = {}
    for name, tensor in tensors:
        array = np.asarray(tensor)
        if name in arrays:
            raise ValueError(f"tensor {name} was given twice")
        if array.dtype.name not in _SAFETENSORS_DTYPES:
            raise ValueError(f"{name} has dtype {array.dtype}, expected one of {', '.join(_SAFETENSORS_DTYPES)}")
        arrays[name] = array
    if not arrays:
        raise ValueError("publish got no tensors")
    return arrays


def _write_safetensors(path: Path, arrays: dict[str, np.ndarray]) -> WeightFile:
    """Writes the safetensors format, hashing while writing (the library would need a second copy or a second pass).

    Format: 8 bytes little-endian header length, JSON header padded to 8 bytes, then the tensors back to back
    (https://github.com/huggingface/safetensors#format).
    """
    header: dict[str, object] = {}
    offset = 0
    for name, array in arrays.items():
        dtype = _SAFETENSORS_DTYPES[array.dtype.name]
        size = math.prod(array.shape) * array.dtype.itemsize
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [offset, offset + size]}
        offset += size
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    digest = hashlib.sha256()
    num_bytes = 0
    with path.open("xb") as stream:
        prefix = memoryview(len(encoded).to_bytes(8, "little") + encoded)
        for block in itertools.chain((prefix,), map(_bytes_of, arrays.values())):
            digest.update(block)
            num_bytes += stream.write(block)
        stream.flush()
        os.fsync(stream.fileno())
    return WeightFile(name=path.name, num_bytes=num_bytes, sha256=digest.hexdigest())


def _bytes_of(array: np.ndarray) -> memoryview:
    """The bytes of an array in row-major order, without a copy where it lies so already."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _write_manifest(folder: Path, manifest: WeightManifest) -> None:
    temporary = folder / f".{MANIFEST_NAME}"
    with temporary.open("xb") as stream:
        stream.write(encode_manifest(manifest))
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(folder / MANIFEST_NAME)
    _sync_folder(folder)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _empty_folder(folder: Path) -> None:
    """Frees the space of a failed publish and keeps the folder, so that its number stays taken."""
    for path in sorted(folder.iterdir(), key=lambda path: path.name != MANIFEST_NAME):
        path.unlink(missing_ok=True)
