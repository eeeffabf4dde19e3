"""Orbax checkpoints to Hugging Face folders and back, in pieces; the one place outside the learner that touches JAX.

Memory does not depend on the model: at most two chunks of the checkpoint and 256 MB. A killed conversion is taken up by
the same call; a result appears when it is whole. Only log-probs (`verify` with `logprobs`) need the whole model.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from learner_jax.checkpoints import CheckpointError, Found, find_checkpoint, read_manifest, require_whole
from learner_jax.contracts import (
    BUILT_IN,
    INDEX_FILE,
    ModelConfig,
    ModelConfigError,
    check_weights,
    hf_shapes,
    parse_config_file,
    weight_files,
)
from learner_jax.conversion import checkpoint_writer
from learner_jax.conversion import compare as hf_compare
from learner_jax.conversion.checkpoint_reader import blocks, open_found, stream
from learner_jax.conversion.hf_layout import Weights, plan
from learner_jax.conversion.hf_writer import Shards
from learner_jax.conversion.upload import Upload, send_checkpoint
from learner_jax.conversion.work_folder import Work, open_work
from learner_jax.models import COMPANION_FILES
from learner_jax.runtime import WeirError, cache_folder
from learner_jax.settings import OptimizerSettings

#: Part of every fingerprint: work of another build is not taken up.
_FORMAT = 1
#: Folder beside the steps of a checkpoint folder that keeps config.json and tokenizer of their model.
SOURCE_MODEL = "source_model"
#: Largest mean difference of a token's log-prob; both sides compute in fp32 from the same, rounded, weights.
LOGPROB_TOLERANCE = 1e-3

Dtype = Literal["float32", "bfloat16"]
AnyPath = str | os.PathLike[str]


class ConversionError(WeirError, ValueError):
    """A conversion can't be done, or its result is not what it should be."""

    can_heal = False


@dataclass(frozen=True)
class Watch:
    """Who is told how a conversion goes: `progress` of bytes done and of all, `say` of what a person should know."""

    progress: Callable[[int, int], None] = lambda done, total: None
    say: Callable[[str], None] = lambda text: None


_NOBODY = Watch()


def to_hf(
    checkpoint: AnyPath,
    *,
    out: AnyPath | Upload,
    model_dir: AnyPath | None = None,
    dtype: Dtype = "float32",
    max_shard_bytes: int = 5_000_000_000,
    check_hashes: bool = True,
    family: str = "",
    identity: str = "",
    watch: Watch = _NOBODY,
) -> None:
    """Writes a checkpoint's parameters as a Hugging Face folder that transformers and vLLM load unchanged.

    Args:
      checkpoint: one checkpoint, or a folder of them (the newest is taken, and refused if it is not whole).
      out: folder, or object storage: then one file at a time is kept here until it is sent.
      model_dir: folder whose config.json, tokenizer and generation settings the new one gets; None to take those that
        the checkpoint keeps or names.
      dtype: of the tensors written; rounding is to nearest even.
      check_hashes: whether to compare the checkpoint's files with their hashes first, which reads all of them.
      family: name of the model's family, where it is none of Weir's (model.family).
      identity: of the checkpoint's content, where its folder is a passing copy; stopped work on the same is taken up.

    Raises:
      CheckpointError, ModelConfigError, ConversionError, WorkError: the message names what is missing, damaged, of
        another shape or in use.
    """
    target = _target(out)
    found = find_checkpoint(checkpoint)
    require_whole(found, hashes=check_hashes, say=watch.say)
    model = _path(model_dir) if model_dir is not None else _model_of(found)
    config, companions = _read_companions(model, family)
    companions["config.json"] = _with_dtype(companions["config.json"], dtype)
    layout = plan(hf_shapes(config), dtype, max_shard_bytes)
    if layout.index is not None:
        companions[INDEX_FILE] = layout.index.encode()
    with open_found(found, config) as source:
        given = {name: hashlib.sha256(data).hexdigest() for name, data in companions.items()}
        content = [identity] if identity else [os.fspath(source.folder), source.files]
        about = [_FORMAT, "to-hf", *content, dtype, max_shard_bytes, given]
        upload_to = None if isinstance(target, Path) else target
        with _work(target, about, watch) as work, Shards(work, layout, upload_to) as shards:
            jobs = [(str(number), block) for number, block in enumerate(blocks(source, config))]
            total = sum(file.size - len(file.header) for file in layout.files)
            done = 0
            for number, block in jobs:
                if number in work.finished:
                    done += shards.skip(config, block)
            watch.progress(done, total)
            for number, block, values in stream(source, [job for job in jobs if job[0] not in work.finished]):
                done += shards.write(number, config, block, values)
                watch.progress(done, total)
            shards.finish()
            _write_companions(work.result if isinstance(target, Path) else target, companions)
            _publish(work, target)


def from_hf(
    model_dir: AnyPath,
    *,
    out: AnyPath | Upload,
    seed: int = 0,
    optimizer: OptimizerSettings | None = None,
    family: str = "",
    identity: str = "",
    watch: Watch = _NOBODY,
) -> None:
    """Writes a Hugging Face folder's weights as a checkpoint at step 0, with a fresh optimizer.

    A run whose `run.directory`/checkpoints this becomes starts from it. The model's config and tokenizer go along.

    Args:
      out: folder, or object storage, where what makes Orbax take a checkpoint for whole goes last.
      optimizer: of the run that will start from it; only the form of its moments matters.
      family: name of the model's family, where it is none of Weir's (model.family).
      identity: of the model's content, where its folder is a passing copy; stopped work on the same is taken up.

    Raises:
      ModelConfigError, WeightFileError, WorkError: `out` holds something already, or the folder is no such model.
    """
    target, folder = _target(out), _path(model_dir)
    config, companions = _read_companions(folder, family)
    check_weights(folder, config)
    settings = optimizer or OptimizerSettings()
    files = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(weight_files(folder))]
    content = [identity] if identity else [os.fspath(folder), files]
    given = {name: hashlib.sha256(data).hexdigest() for name, data in companions.items()}
    about = [_FORMAT, "from-hf", *content, given, seed, settings.moments]
    with _work(target, about, watch) as work, Weights(folder) as weights:
        stage = work.folder / "stage"
        checkpoint_writer.stage_parameters(work, stage, weights, config, watch.progress)
        shutil.rmtree(work.result)  # of a try that was killed while it was committed
        checkpoint_writer.commit(stage, work.result, config, settings, seed=seed)
        (work.result / SOURCE_MODEL).mkdir()
        _write_companions(work.result / SOURCE_MODEL, companions)
        if not isinstance(target, Path):
            send_checkpoint(work.result, target)
        _publish(work, target)


@dataclass(frozen=True)
class Verification:
    """What a comparison found.

    Attributes:
      problems: one line each; empty if all is as it should be.
      num_tensors: that a model of this shape has.
      logprob_difference: largest mean difference of a golden prompt's log-probs; None if they were not compared.
      judge: who computed the folder's log-probs.
    """

    problems: tuple[str, ...]
    num_tensors: int
    logprob_difference: float | None = None
    judge: str = ""


def verify(
    checkpoint: AnyPath,
    hf: AnyPath,
    *,
    logprobs: bool = True,
    check_hashes: bool = True,
    family: str = "",
    watch: Watch = _NOBODY,
) -> Verification:
    """Compares a model folder with the checkpoint that it was made from, or that was made from it.

    First whether the checkpoint is whole; then every tensor's name, shape and content, against the checkpoint's values
    rounded to its dtype; then log-probs on golden prompts, the learner's model
    on the checkpoint against transformers on the folder (without transformers, and for a family that is none of Weir's,
    against the learner's own loader).

    Args:
      logprobs: needs the model in memory three times over.
      check_hashes: whether to compare the checkpoint's files with their hashes, which reads all of them.
      family: name of the model's family, where it is none of Weir's (model.family).

    Raises:
      CheckpointError, ModelConfigError, WeightFileError: the checkpoint is not whole, or a side can't be read at all.
    """
    checked = find_checkpoint(checkpoint)
    require_whole(checked, hashes=check_hashes, say=watch.say)
    model = _path(hf)
    config, _ = _read_companions(model, family)
    with open_found(checked, config) as source:
        total = sum(4 * int(np.prod(array.shape)) for array in source.arrays.values())
        done = 0

        def progress(nbytes: int) -> None:
            nonlocal done
            done += nbytes
            watch.progress(min(done, total), total)

        problems = hf_compare.compare_tensors(source, config, model, progress)
        if problems or not logprobs:
            return Verification(tuple(problems), len(hf_shapes(config)))
        tokens = hf_compare.golden_tokens(config)
        expected = hf_compare.source_logprobs(source, config, model, tokens)
    try:
        judge, found = _folder_logprobs(model, config, tokens)
    except (RuntimeError, ValueError, KeyError, OSError) as error:
        problem = f"{hf}: expected that transformers loads it, but: {' '.join(str(error).split())}"
        return Verification((problem,), len(hf_shapes(config)))
    difference = float(np.abs(expected - found).mean(axis=1).max())
    if not difference <= LOGPROB_TOLERANCE:
        problems.append(
            f"log-probs of {judge} on {hf} differ by {difference:.2e} from the learner's on {checkpoint}, expected at "
            f"most {LOGPROB_TOLERANCE:g}: the weights are equal, so config.json is of another model"
        )
    return Verification(tuple(problems), len(hf_shapes(config)), difference, judge)


def _folder_logprobs(folder: Path, config: ModelConfig, tokens: np.ndarray) -> tuple[str, np.ndarray]:
    """Who computed, and float32[B, T]: the log-prob of each token given those before it, 0 for the first."""
    if config.family not in BUILT_IN:  # transformers does not know it
        return "the learner's model", hf_compare.folder_logprobs(folder, config, tokens)
    try:
        torch, transformers = importlib.import_module("torch"), importlib.import_module("transformers")
    except ImportError:
        return "the learner's model", hf_compare.folder_logprobs(folder, config, tokens)
    transformers.utils.logging.disable_progress_bar()
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        ids = torch.from_numpy(tokens.astype(np.int64))
        logits = model.eval()(ids).logits.float()
        chosen = torch.log_softmax(logits[:, :-1], dim=-1).gather(-1, ids[:, 1:, None])[..., 0]
    return "transformers", np.pad(chosen.numpy(), ((0, 0), (1, 0)))


def _path(path: AnyPath) -> Path:
    if "://" in os.fspath(path):
        raise ConversionError(f"{os.fspath(path)} is a URL, expected a folder of this machine")
    return Path(path).expanduser().absolute()


def _target(out: AnyPath | Upload) -> Path | Upload:
    return _path(out) if isinstance(out, str | os.PathLike) else out


@contextlib.contextmanager
def _work(target: Path | Upload, about: list[Any], watch: Watch) -> Iterator[Work]:
    """The work that makes `target`; what object storage is to get is made in the user's cache."""
    if isinstance(target, Path):
        local = target
    else:
        cache = cache_folder() / "convert"
        local = cache / hashlib.sha256(target.url.encode()).hexdigest()[:16]
        about = [*about, target.url]
    with open_work(local, about, watch.say) as work:
        if not isinstance(target, Path) and not work.finished and target.list():
            raise ConversionError(f"{target.url} is not empty; name a place that does not exist yet")
        yield work


def _publish(work: Work, target: Path | Upload) -> None:
    if isinstance(target, Path):
        work.publish()
    else:
        shutil.rmtree(work.folder)


def _read_companions(folder: Path, family: str) -> tuple[ModelConfig, dict[str, bytes]]:
    """The model's shape, and the files of its folder other than weights."""
    if not folder.is_dir():
        raise ModelConfigError(f"model folder {folder} does not exist; name a Hugging Face model folder")
    found = {name: (folder / name).read_bytes() for name in COMPANION_FILES if (folder / name).exists()}
    if "config.json" not in found:
        raise ModelConfigError(f"{folder} holds no config.json; expected a Hugging Face model folder")
    return parse_config_file(found["config.json"], origin=str(folder / "config.json"), family=family), found


def _write_companions(target: Path | Upload, companions: dict[str, bytes]) -> None:
    """config.json last: without it no loader takes a folder for a model."""
    for name in sorted(companions, key=lambda name: name == "config.json"):
        if isinstance(target, Path):
            (target / name).write_bytes(companions[name])
        else:
            target.put(name, companions[name])


def _with_dtype(config: bytes, dtype: Dtype) -> bytes:
    """config.json that names the dtype of the tensors beside it, if it names one: loaders go by it."""
    raw = json.loads(config)
    keys = [key for key in ("dtype", "torch_dtype") if raw.get(key, dtype) != dtype]
    if not keys:
        return config
    return json.dumps(raw | dict.fromkeys(keys, dtype), indent=2).encode() + b"\n"


def _model_of(found: Found) -> Path:
    """The folder with config.json and tokenizer of a checkpoint's model: beside it, its run's, or named in it."""
    folder = found.folder
    root = folder.parent if found.item != folder else folder
    candidates = [root / SOURCE_MODEL, root.parent / "start_model", root.parent / "created_model"]
    if not found.is_foreign:
        with contextlib.suppress(CheckpointError):  # which is told of when it is opened
            named = (read_manifest(folder).config.get("model") or {}).get("path")
            candidates += [_path(named)] if named else []
    for candidate in candidates:
        if (candidate / "config.json").exists():
            return candidate
    looked = ", ".join(map(str, candidates))
    raise ConversionError(
        f"checkpoint {folder} does not say which model it is of: no config.json in {looked}; name the model's folder "
        f"with --model"
    )
