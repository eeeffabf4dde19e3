"""Checkpoints and model folders of object storage as folders of this machine, for as long as they are read."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import xxhash

from learner_jax.contracts import ADAPTER_FILE, INDEX_FILE
from learner_jax.runtime import WeirError
from serving_bridge.storage import CheckpointObjects, ContentError, FsspecObjects, fetch_objects, is_url

Progress = Callable[[int, int], None]
_BLOCK_BYTES = 16 << 20
_SOURCE_MODEL = "source_model/"
#: What tells which of several checkpoints is the newest that counts; small beside their arrays.
_TELLING = ("_CHECKPOINT_METADATA", "_METADATA", "hashes.json")


@dataclass(frozen=True)
class Fetched:
    """A folder of this machine.

    Attributes:
      is_copy: whether it is a passing copy of what a URL names.
    """

    folder: str
    is_copy: bool = False

    def identity(self) -> str:
        """A hash of a passing copy's content, which reads all files; empty for another folder."""
        return _digest(Path(self.folder)) if self.is_copy else ""


@contextmanager
def checkpoint_here(place: str, *, progress: Progress = lambda done, total: None) -> Iterator[Fetched]:
    """A checkpoint as a folder: `place` itself, or what is fetched from that URL and gone at the end.

    The URL names a checkpoint, a folder of them, or a run's `store.checkpoints`; of several the newest that counts is
    taken. `.../40` names step 40 of either kind of folder.

    Raises:
      StorageError, ContentError: storage does not answer, has no checkpoint there, or not what was written.
      WeirError: what the caller raises; the URL stands for the passing folder in its text.
    """
    if not is_url(place):
        yield Fetched(place)
        return
    with tempfile.TemporaryDirectory(prefix="weir-fetch-") as made:
        # Nothing of another user's beside it is taken for the model of the run.
        checkpoints = Path(made) / "run" / "checkpoints"
        checkpoints.mkdir(parents=True)
        folder, exactly = _checkpoint(place.rstrip("/"), checkpoints, progress)
        with _named(exactly, folder):
            yield Fetched(str(folder), is_copy=True)


@contextmanager
def model_here(place: str, *, weights: bool, progress: Progress = lambda done, total: None) -> Iterator[Fetched]:
    """A Hugging Face model folder: `place` itself, or what is fetched from that URL and gone at the end.

    Args:
      weights: whether its safetensors files are wanted, beside configuration and tokenizer.

    Raises:
      StorageError, ContentError: storage does not answer, or has no model there.
      WeirError: what the caller raises; the URL stands for the passing folder in its text.
    """
    if not is_url(place):
        yield Fetched(place)
        return
    from learner_jax.conversion import COMPANION_FILES  # needs JAX

    objects = FsspecObjects(place)
    wanted = {*COMPANION_FILES, INDEX_FILE, ADAPTER_FILE}
    sizes = {key: size for key, size in objects.list().items() if key in wanted or (weights and _is_weights(key))}
    if "config.json" not in sizes:
        raise ContentError(f"{place} holds no config.json; expected a Hugging Face model folder")
    with tempfile.TemporaryDirectory(prefix="weir-fetch-") as made:
        folder = Path(made) / "model"
        _fetch(objects, sizes, folder, progress)
        with _named(place, folder):
            yield Fetched(str(folder), is_copy=True)


def _is_weights(key: str) -> bool:
    return "/" not in key and key.endswith(".safetensors")


def _checkpoint(url: str, folder: Path, progress: Progress) -> tuple[Path, str]:
    """Fetches the checkpoint that a URL names into `folder`, and the model that is kept beside it.

    Returns: where it is now, and the URL of exactly that checkpoint.
    """
    above, _, last = url.rpartition("/")
    step = int(last) if last.isascii() and last.isdigit() and "://" in above.rstrip("/") else None
    objects = FsspecObjects(url if step is None else above)
    keys = objects.list()
    if any(key.startswith("manifests/") for key in keys):
        return _copy(objects, step, folder), url
    model = {key: size for key, size in keys.items() if key.startswith(_SOURCE_MODEL)}
    _fetch(objects, model, folder, lambda done, total: None)
    name = str(step) if step is not None else "" if _is_checkpoint(keys) else _newest(objects, keys, folder)
    prefix = f"{name}/" if name else ""
    parts = {key: size for key, size in keys.items() if key.startswith(prefix) and key not in model}
    if not parts:
        raise ContentError(f"{url} holds no checkpoint; expected one, a folder of them, or a run's store.checkpoints")
    _fetch(objects, parts, folder / "fetched", progress)
    # Under a name that is no step: nothing is said of others beside it, which were not fetched.
    moved = (folder / "fetched" / prefix).rename(folder / "checkpoint")
    return moved, f"{objects.url}/{prefix}".rstrip("/")


def _is_checkpoint(keys: Mapping[str, int]) -> bool:
    return any(name in keys for name in _TELLING) or "state/_METADATA" in keys


def _newest(objects: FsspecObjects, keys: Mapping[str, int], folder: Path) -> str:
    """Name of the newest checkpoint of a folder of them, as `find_checkpoint` has it; "none" if there is none."""
    from learner_jax.checkpoints import find_checkpoint, steps_in  # needs JAX

    telling = {
        key: size
        for key, size in keys.items()
        if key.split("/")[0].isdigit() and (key.endswith(_TELLING) or key.split("/")[1:2] == ["manifest"])
    }
    seen = folder.with_name("seen")
    _fetch(objects, telling, seen, lambda done, total: None)
    return find_checkpoint(seen).folder.name if steps_in(seen) else "none"


def _copy(objects: FsspecObjects, step: int | None, folder: Path) -> Path:
    """Fetches a copy that a run made: the newest, or that of a step."""
    copies = CheckpointObjects(objects, run="")
    found = [copy for copy in copies.recent() if step is None or copy.step == step]
    if not found:
        there = ", ".join(str(copy.step) for copy in sorted(copies.recent())) or "none"
        wanted = "checkpoint" if step is None else f"checkpoint of step {step}"
        raise ContentError(f"{objects.url} holds no {wanted}; the steps of the copies there: {there}")
    target = folder / "fetched"
    copies.fetch(max(found), target)
    return target


def _fetch(objects: FsspecObjects, sizes: Mapping[str, int], folder: Path, progress: Progress) -> None:
    done, total = 0, sum(sizes.values())

    def fetched(num_bytes: int) -> None:
        nonlocal done
        done += num_bytes
        progress(done, total)

    fetch_objects(objects, sizes, folder, fetched=fetched)


def _digest(folder: Path) -> str:
    """A hash, in hex, of the names and contents of all files."""
    digest = xxhash.xxh3_128()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(f"\0{path.relative_to(folder).as_posix()}\0{path.stat().st_size}\0".encode())
        with path.open("rb") as file:
            while block := file.read(_BLOCK_BYTES):
                digest.update(block)
    return digest.hexdigest()


@contextmanager
def _named(url: str, folder: Path) -> Iterator[None]:
    """The URL for the passing folder in the texts of errors, which stay what they are."""
    try:
        yield
    except WeirError as error:
        error.args = tuple(part.replace(str(folder), url) if isinstance(part, str) else part for part in error.args)
        raise
