"""What the registry is told of a version that a run published, and of a model folder from outside."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from configs.load import load_config
from learner_jax.contracts import MANIFEST_SCHEMA, GoldenPrompt, WeightManifest, quoted
from learner_jax.runtime import this_code
from serving_bridge.registry import Candidate, DataWindow, Origin, RegistryError, model_files
from serving_bridge.weights import (
    Tensor,
    WeightIntegrityError,
    WeightStore,
    content_sha256,
    entry_of,
    mapped_safetensors,
)
from tools.assembly.base_model import start_model_dir
from tools.assembly.build import build_task
from tools.assembly.paths import run_paths

#: Kept with an entry: what the run was told.
SETTINGS_NAME = "run_config.toml"


@dataclass(frozen=True)
class RegisteredRun:
    """What a run says of one of its versions."""

    store: WeightStore
    version: int
    files: dict[str, bytes]
    candidate: Candidate


def of_run(directory: Path, version: int | None, *, parent: int | None, consent: str, note: str) -> RegisteredRun:
    """A version of the run in `directory`, by default the newest.

    Raises:
      RegistryError: there is no run, or it has published nothing.
      ConfigError, StoreError: see `load_config` and `WeightStore.manifest`.
    """
    path = directory / "config.toml"
    if not path.is_file():
        raise RegistryError(f"{directory} has no config.toml: expected the directory of a run")
    config = load_config(path, [])
    paths = run_paths(config)
    store = WeightStore(paths.weights, config.run.name)
    newest = store.newest()
    if newest is None:
        raise RegistryError(f"{paths.weights} holds no weight version: expected a run that has published one")
    manifest = newest if version is None else store.manifest(version)
    files = model_files(start_model_dir(config, paths)) | {SETTINGS_NAME: path.read_bytes()}
    task = build_task(config)
    trained = manifest.step * config.learner.groups_per_step
    data = (DataWindow(f"{task.version}, groups trained on", 0, trained - 1),) if trained else ()
    candidate = Candidate(
        origin=Origin("run", config.run.name, manifest.version, manifest.step, _code()),
        parent=parent,
        data=data,
        versions=(("task", task.version),),
        consent=consent,
        note=note,
    )
    return RegisteredRun(store, manifest.version, files, candidate)


@dataclass(frozen=True)
class RegisteredFolder:
    """A model folder, read as a version of a weight store would be."""

    tensors: dict[str, Tensor]
    manifest: WeightManifest
    files: dict[str, bytes]
    candidate: Candidate


def of_folder(folder: Path, *, parent: int | None, note: str) -> RegisteredFolder:
    """A model in Hugging Face's layout, with golden prompts whose log-probs the learner's model computes.

    Raises:
      RegistryError: it is no such folder.
      WeightIntegrityError, ModelConfigError: its weights can't be read, or are of no model that Weir knows.
    """
    files = model_files(folder)
    tensors: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        for name, tensor in mapped_safetensors(path):
            if name in tensors:
                raise WeightIntegrityError(f"{path} has {quoted(name, 80)} once more, which another file has too")
            tensors[name] = tensor
    if not tensors:
        raise RegistryError(f"{folder} has no *.safetensors: expected the weights of a model in that format")
    entries = [entry_of(name, tensor) for name, tensor in tensors.items()]
    manifest = WeightManifest(
        schema=MANIFEST_SCHEMA,
        version=1,
        base_version=None,
        format="full",
        step=0,
        parent=None,
        run="",
        content_sha256=content_sha256(entries),
        num_changed=None,
        files=[],
        tensors=entries,
        golden=_golden(folder),
    )
    name = quoted(folder.resolve().name, 200)
    candidate = Candidate(origin=Origin("folder", name, 0, 0, _code()), parent=parent, note=note)
    return RegisteredFolder(tensors, manifest, files, candidate)


def _golden(folder: Path) -> list[GoldenPrompt]:
    from learner_jax.conversion import folder_golden  # loads JAX, which the other commands do without

    tokens, logprobs = folder_golden(folder)
    return [
        GoldenPrompt(tokens=[int(token) for token in row], logprobs=[float(value) for value in values[1:]])
        for row, values in zip(tokens, logprobs, strict=True)
    ]


def _code() -> str:
    code = this_code()
    return f"weir {code.version}" + (f" {code.commit}" if code.commit else "")
