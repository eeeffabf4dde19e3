"""The JSON files of a model folder that say what its tokenizer is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from learner_jax.runtime import WeirError


class TokenizerError(WeirError, ValueError):
    """A model folder's tokenizer is missing, damaged or doesn't fit: says the file and what was expected."""

    can_heal = False


@dataclass(frozen=True)
class TokenizerFiles:
    """What the files of a folder hold that have to do with its tokenizer; {} for one that is not there."""

    folder: Path
    tokenizer: Mapping[str, Any]
    config: Mapping[str, Any]
    special_tokens_map: Mapping[str, Any]
    added_tokens: Mapping[str, Any]
    model: Mapping[str, Any]


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file, {} where there is none; raises `TokenizerError` on a damaged file."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_bytes().decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise TokenizerError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise TokenizerError(f"{path} holds a {type(content).__name__}, expected an object")
    return content


def read_files(folder: Path) -> TokenizerFiles:
    """Raises `TokenizerError`: a file is damaged, or there is no tokenizer.json."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise TokenizerError(f"{path} does not exist; model.path must be a Hugging Face folder with a fast tokenizer")
    return TokenizerFiles(
        folder=folder,
        tokenizer=read_object(path),
        config=read_object(folder / "tokenizer_config.json"),
        special_tokens_map=read_object(folder / "special_tokens_map.json"),
        added_tokens=read_object(folder / "added_tokens.json"),
        model=read_object(folder / "config.json"),
    )
