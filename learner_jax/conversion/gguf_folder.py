"""A GGUF file as a Hugging Face folder: quantized weights are rounded to bfloat16 or float32, and can be trained.

transformers reads the file with the packages gguf and accelerate; the model is in memory once, in the dtype that is
written. The result has the quantization's error: it is not the model that was quantized.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
from pathlib import Path
from typing import Any, Literal

from learner_jax.contracts import HEAD
from learner_jax.conversion.convert import ConversionError
from learner_jax.conversion.work_folder import open_work
from learner_jax.runtime import raised

_FORMAT = 1
_MAGIC = b"GGUF"
#: Of the file, not of the model: what the folder holds is not quantized.
_NOT_KEPT = ("quantization_config", "_name_or_path")


def from_gguf(file: str | Path, *, out: str | Path, dtype: Literal["float32", "bfloat16"] = "bfloat16") -> int:
    """Writes model, tokenizer, chat template and generation settings of a GGUF file as a Hugging Face folder.

    Args:
      file: the .gguf file, or a folder that holds one.
      out: local folder that does not exist yet; it appears when it is whole.
      dtype: of the tensors written.

    Returns:
      The number of tensors.

    Raises:
      ConversionError: the file is none, is of an architecture that transformers doesn't know, or a package is missing.
      WorkError: `out` is in use.
    """
    source = _found(Path(file).expanduser().absolute())
    torch, transformers, save_file = _readers()
    target = Path(out).expanduser().absolute()
    about = [_FORMAT, "from-gguf", os.fspath(source), source.stat().st_size, source.stat().st_mtime_ns, dtype]
    with open_work(target, about, lambda text: None) as work:
        transformers.logging.set_verbosity_error()  # it warns of a dtype that costs only where packed weights compute
        transformers.utils.logging.disable_progress_bar()
        place = {"pretrained_model_name_or_path": source.parent, "gguf_file": source.name, "local_files_only": True}
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(**place)
            model = transformers.AutoModelForCausalLM.from_pretrained(**place, dtype=getattr(torch, dtype))
        except Exception as error:
            raise ConversionError(
                f"{source}: transformers {transformers.__version__} can't read it: {raised(error)}"
            ) from error
        tensors = _tensors(model, getattr(torch, dtype))
        weights, config = work.result / "model.safetensors", work.result / "config.json"
        save_file(tensors, weights, metadata={"format": "pt"})
        tokenizer.save_pretrained(work.result)
        _write(work.result / "generation_config.json", _marks(tokenizer))
        _write(config, _config(model, dtype))
        shutil.copymode(config, weights)  # safetensors' own is for one user only
        work.publish()
    return len(tensors)


def _found(path: Path) -> Path:
    """The file itself, which begins as GGUF files do."""
    if path.is_dir():
        held = sorted(path.glob("*.gguf"))
        if len(held) != 1:
            names = ", ".join(each.name for each in held) or "none"
            raise ConversionError(f"{path} holds {len(held)} .gguf files ({names}), expected one: name the file itself")
        path = held[0]
    if not path.is_file():
        raise ConversionError(f"{path} does not exist; name a .gguf file, or a folder that holds one")
    with path.open("rb") as file:
        if (begin := file.read(len(_MAGIC))) != _MAGIC:
            raise ConversionError(f"{path} begins with {begin!r}, expected {_MAGIC!r}: it is no GGUF file")
    return path


def _readers() -> tuple[Any, Any, Any]:
    """torch, transformers and safetensors' writer, which the learner itself doesn't need."""
    try:
        for name in ("gguf", "accelerate"):
            importlib.import_module(name)
        found = tuple(importlib.import_module(name) for name in ("torch", "transformers", "safetensors.torch"))
    except ImportError as error:
        raise ConversionError(
            f"reading GGUF needs gguf, accelerate, torch and transformers, and {error.name or 'one of them'} can't be "
            f"imported: pip install 'weir[gguf]'"
        ) from error
    return found[0], found[1], found[2].save_file


def _tensors(model: Any, dtype: Any) -> dict[str, Any]:
    """By name; a tied head is the embedding, and not written twice."""
    tied = model.config.tie_word_embeddings
    state = model.state_dict().items()
    return {name: value.detach().to(dtype).contiguous() for name, value in state if not (tied and name == HEAD)}


def _config(model: Any, dtype: str) -> dict[str, Any]:
    config = {name: value for name, value in model.config.to_dict().items() if name not in _NOT_KEPT}
    return {**config, "architectures": [type(model).__name__], "dtype": dtype}


def _marks(tokenizer: Any) -> dict[str, int]:
    """What generation begins, ends and pads with, as far as the tokenizer has it."""
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    return {name: value for name, value in ids.items() if value is not None}


def _write(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, default=str) + "\n", encoding="utf-8")
