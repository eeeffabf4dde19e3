"""Which files of a model folder hold its weights: those that transformers and vLLM both read, or none; free of JAX."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from learner_jax.runtime import WeirError, printable

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
#: Of PEFT; transformers applies what it describes.
ADAPTER_FILE = "adapter_config.json"
_SUFFIX = ".safetensors"
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*\.safetensors")


class WeightFileError(WeirError, ValueError):
    """Weight files are missing, damaged, or not those of the model: says file, tensor, expected, got."""

    can_heal = False


def weight_files(model_dir: Path) -> dict[Path, set[str] | None]:
    """Safetensors files of a folder, each with the tensors that the index promises (None: there is no index).

    Pickled weights (.bin, .pth, .pt) are never loaded.

    Raises:
      WeightFileError: there are none, the index is damaged, or transformers and vLLM would read different files.
    """
    if not model_dir.is_dir():
        raise WeightFileError(f"model folder {model_dir} does not exist; set model.path to a Hugging Face folder")
    # vLLM looks for names that do not begin with a dot.
    found = {path.name for path in model_dir.iterdir() if path.name.endswith(_SUFFIX) and path.name[0] != "."}
    _refuse_other_kinds(model_dir, found)
    index_path = model_dir / INDEX_FILE
    if index_path.exists():
        promised = _read_index(index_path)
        if SINGLE_FILE in found and set(promised) != {SINGLE_FILE}:
            raise WeightFileError(
                f"{model_dir} holds {SINGLE_FILE}, which transformers reads, and {INDEX_FILE} with other files, which "
                f"vLLM reads; remove those that are not the model's"
            )
    else:
        promised = {SINGLE_FILE: None}
        if SINGLE_FILE not in found:
            held = some(path.name for path in model_dir.iterdir())
            raise WeightFileError(
                f"{model_dir} holds neither {SINGLE_FILE} nor {INDEX_FILE}, only {held}; "
                f"expected safetensors weights (convert .bin or .pth files first)"
            )
        if others := found - {SINGLE_FILE}:
            raise WeightFileError(
                f"{model_dir} holds {some(others)} beside {SINGLE_FILE} and no {INDEX_FILE}; vLLM would read them all: "
                f"remove those that are not the model's"
            )
    for name in promised:
        if not (model_dir / name).is_file():
            raise WeightFileError(
                f"{model_dir / name} is missing, though {INDEX_FILE} names it; fetch the folder again"
                if index_path.exists()
                else f"{model_dir / name} is no file; fetch the folder again"
            )
    return {model_dir / name: names for name, names in promised.items()}


def _refuse_other_kinds(model_dir: Path, found: set[str]) -> None:
    if (model_dir / ADAPTER_FILE).exists():
        raise WeightFileError(
            f"{model_dir} holds {ADAPTER_FILE}: transformers would apply the adapter to the weights, vLLM would not; "
            f"merge it into the model, or move it elsewhere"
        )
    if consolidated := {name for name in found if name.startswith("consolidated")}:
        raise WeightFileError(
            f"{model_dir} holds {some(consolidated)}, which vLLM reads instead of the files that transformers reads; "
            f"move it elsewhere"
        )


def _read_index(path: Path) -> dict[str, set[str] | None]:
    """File name -> names of its tensors."""
    try:
        index = json.loads(path.read_bytes().decode("utf-8"))
        weight_map = index["weight_map"]
        if not isinstance(index["metadata"], dict):
            raise TypeError("metadata is no object")
        files: dict[str, set[str]] = {}
        for tensor, name in weight_map.items():
            if not isinstance(name, str):
                raise TypeError(f"tensor {printable(tensor)} is in {name!r}")
            files.setdefault(name, set()).add(tensor)
        if not files:
            raise ValueError("no tensors")
    except (ValueError, KeyError, TypeError, AttributeError, OSError, RecursionError) as error:
        raise WeightFileError(
            f"{path} is not an index with a weight_map and metadata: {error!r}; fetch it again"
        ) from error
    for name in files:
        if _PLAIN_NAME.fullmatch(name) is None:
            raise WeightFileError(
                f"{path}: weight_map names the file {printable(name)}, expected a plain name such as "
                f"model-00001-of-00002.safetensors"
            )
    return {**files}


def open_weights(path: Path, promised: set[str] | None) -> Any:
    """The safetensors library's handle of a file, whose header it has checked: sizes, gaps and overlaps.

    Args:
      promised: names of the tensors that the file holds by the index; None if there is no index.

    Raises:
      WeightFileError: the file is not a whole safetensors file, or holds other tensors than promised.
    """
    try:
        handle = safe_open(path, framework="np")
        held = set(handle.keys())
    except (SafetensorError, OSError) as error:
        raise WeightFileError(
            f"{path} ({path.stat().st_size} bytes) is not a whole safetensors file: {error}; fetch or copy it again"
        ) from error
    if promised is not None and promised != held:
        raise WeightFileError(
            f"{path}: {INDEX_FILE} and the file disagree on tensors {some(promised ^ held)}; fetch the folder again"
        )
    return handle


def some(names: Iterable[str], limit: int = 5) -> str:
    """The first few of `names`, and how many more there are."""
    ordered = sorted(map(printable, names))
    return ", ".join(ordered[:limit]) + (f" and {len(ordered) - limit} more" if len(ordered) > limit else "") or "none"
