"""The weights that are evaluated: a model folder, or one made of a run's checkpoint or of a published version."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import xxhash

from configs.load import load_config
from learner_jax.contracts import SINGLE_FILE, read_json_object, weight_files
from serving_bridge.storage import is_url
from serving_bridge.weights import StoreError, WeightStore, files, read_version
from tools.assembly import checkpoint_here, model_here, run_paths, start_model_dir
from tools.evaluation.asking import Identity
from tools.evaluation.errors import ResultError

Dtype = Literal["float32", "bfloat16"]
_BLOCK_BYTES = 16 << 20
#: Of a model folder, all that an answer depends on beside the weights.
_COMPANIONS = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)


@dataclass(frozen=True)
class Source:
    """What is to be evaluated.

    Attributes:
      path: of the folder, checkpoint or weight store, or its URL in object storage.
      version: of the weight store; None for its newest.
      base: folder to take config.json and tokenizer from, where the source has none.
      dtype: of the served weights; None: bfloat16 where config.json says so, else float32.
    """

    kind: Literal["folder", "checkpoint", "weights"]
    path: Path | str
    version: int | None = None
    base: Path | None = None
    dtype: Dtype | None = None
    family: str = ""


@dataclass(frozen=True)
class ModelFolder:
    """A model folder that vLLM can load, and what names its weights."""

    path: Path
    identity: Identity
    dtype: Dtype


@contextmanager
def model_folder(source: Source, scratch: Path) -> Iterator[ModelFolder]:
    """The source as a model folder; what is made for it lies in `scratch` and is gone at the end.

    Raises:
      ConversionError, CheckpointError, StoreError, ModelConfigError: it can't be read; says why.
    """
    if source.kind == "folder":
        with model_here(str(source.path), weights=True) as here:
            yield _described(source, Path(here.folder), str(source.path))
        return
    with tempfile.TemporaryDirectory(prefix="model-", dir=scratch) as made:
        folder = Path(made) / "model"
        if source.kind == "checkpoint":
            _from_checkpoint(source, folder)
            name = str(source.path)
        else:
            name = f"{source.path}, version {_from_store(source, folder)}"
        yield _described(source, folder, name)


def folder_hash(folder: Path, dtype: Dtype) -> str:
    """xxh3-128, in hex, of a model folder's weights and companions, and of the dtype that they are served in."""
    digest = xxhash.xxh3_128(dtype.encode())
    names = [name for name in _COMPANIONS if (folder / name).is_file()]
    for path in [*(folder / name for name in names), *sorted(weight_files(folder))]:
        digest.update(f"\0{path.name}\0{path.stat().st_size}\0".encode())
        with path.open("rb") as file:
            while block := file.read(_BLOCK_BYTES):
                digest.update(block)
    return digest.hexdigest()


def _described(source: Source, folder: Path, name: str) -> ModelFolder:
    dtype = source.dtype or _dtype_of(folder)
    return ModelFolder(folder, Identity(source.kind, name, folder_hash(folder, dtype)), dtype)


def _dtype_of(folder: Path) -> Dtype:
    try:
        raw = read_json_object(folder / "config.json")
    except FileNotFoundError:
        raise ResultError(f"{folder} holds no config.json; expected a Hugging Face model folder") from None
    return "bfloat16" if raw.get("dtype", raw.get("torch_dtype")) == "bfloat16" else "float32"


def _from_checkpoint(source: Source, folder: Path) -> None:
    from learner_jax.conversion import to_hf  # needs JAX, which other sources do without

    dtype = source.dtype or "float32"
    with checkpoint_here(str(source.path)) as here:
        to_hf(here.folder, out=folder, model_dir=source.base, dtype=dtype, family=source.family)


def _from_store(source: Source, folder: Path) -> int:
    """Writes a version as a model folder; returns its number."""
    store = WeightStore(source.path, run="")
    versions = store.versions()
    if not versions:
        raise StoreError(f"{source.path} holds no weight version; expected a store such as runs/demo/weights")
    version = versions[-1] if source.version is None else source.version
    if version not in versions:
        raise StoreError(f"{source.path} holds no version {version}, only {versions[0]} to {versions[-1]}")
    manifest = store.best_manifest(version)
    base = source.base or _base_beside(source.path)
    folder.mkdir()
    for name in _COMPANIONS:
        if (base / name).is_file():
            shutil.copyfile(base / name, folder / name)
    files.write_safetensors(folder / SINGLE_FILE, read_version(WeightStore(source.path, manifest.run), version))
    return version


def _base_beside(store: Path | str) -> Path:
    """The model folder that the run began from whose store this is."""
    config = Path(store).absolute().parent / "config.toml"
    if is_url(store) or not config.is_file():
        raise ResultError(f"{store} has no config.json and tokenizer, and no run beside it: name a folder with --base")
    resolved = load_config(config)
    return start_model_dir(resolved, run_paths(resolved))
