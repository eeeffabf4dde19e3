"""What numbers, names and texts of a record may be, whoever wrote it; and how hostile text is quoted in messages."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from learner_jax.runtime import WeirError

#: Versions are held as int32 with every token; a folder's name or a record beyond is nobody's.
MAX_VERSION = 2**31 - 1
MAX_PROMPT_INDEX = 2**31 - 1
MAX_STEP = 2**40
#: Of one group; far above what any estimator is used with.
MAX_GROUP_SIZE = 2**16
#: Bound on the sum of absolute rewards of an answer, and on each named part: squares of it are far from overflow.
MAX_REWARD = 1e6
#: Nats. No sampler draws a token of such a probability.
MIN_LOGPROB = -1000.0
MAX_ID = 256
MAX_TEXT = 2**20
MAX_FIELDS = 64
#: Of an error, a reason or an answer in what processes tell each other.
MAX_RECORD_TEXT = 2000
_MAX_KEY = 128
_SHOWN = 300

#: `{run}/{prompt index}`; what comes before the index may have parts of its own.
_GROUP_ID = re.compile(r"(?:(?!\.\.?/)[A-Za-z0-9._-]+/)+(0|[1-9][0-9]{0,9})", re.ASCII)
_SAMPLE = re.compile(r"0|[1-9][0-9]{0,5}", re.ASCII)

_SAMPLING: Mapping[str, tuple[type, float, float]] = {
    "temperature": (float, 0.0, 100.0),
    "top_p": (float, 0.0, 1.0),
    "min_p": (float, 0.0, 1.0),
    "top_k": (int, -1, 2**31 - 1),
    "max_tokens": (int, 1, 2**31 - 1),
    "min_tokens": (int, 0, 2**31 - 1),
}


class ContractError(WeirError, ValueError):
    """A record breaks its contract: says the field, what was expected and what came."""


def quoted(value: object, limit: int = _SHOWN) -> str:
    """A value as text for messages, logs and databases: printable, on one line, at most so many characters."""
    text = value if isinstance(value, str) else repr(value)
    text = text[: limit + 1]
    if not text.isprintable():
        text = "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)
    return text if len(text) <= limit else f"{text[:limit]}..."


def check_printable(where: str, value: object, limit: int = MAX_ID) -> None:
    """Raises `ContractError` unless a value is a text of at most so many printable characters."""
    if not isinstance(value, str):
        raise ContractError(f"{where} is {quoted(value, 80)}, expected text")
    if len(value) > limit:
        raise ContractError(f"{where} has {len(value)} characters, expected at most {limit}")
    if not value.isprintable():
        raise ContractError(f"{where} is {quoted(value, 80)}, expected printable text")


def check_integer(where: str, value: object, lowest: int, highest: int) -> None:
    """Raises `ContractError` unless a value is an integer from `lowest` to `highest`."""
    if type(value) is not int or not lowest <= value <= highest:
        raise ContractError(f"{where} is {quoted(value, 80)}, expected an integer from {lowest} to {highest}")


def is_number(value: object, lowest: float, highest: float) -> bool:
    """Whether a value is a finite number from `lowest` to `highest`; NaN and truth values are none."""
    return type(value) in (int, float) and lowest <= value <= highest  # type: ignore[operator]


def prompt_index(group_id: object) -> int:
    """The index that a group's id ends with.

    Raises:
      ContractError: it is no group id.
    """
    index = _index_in(group_id) if isinstance(group_id, str) and len(group_id) <= MAX_ID else None
    if index is None:
        raise ContractError(
            f"group id {quoted(group_id, 80)} is none, expected <run>/<index of the prompt up to {MAX_PROMPT_INDEX}>"
        )
    return index


@lru_cache(maxsize=4096)
def _index_in(group_id: str) -> int | None:
    """Remembered: all answers of a group name it, each time they are read or written."""
    found = _GROUP_ID.fullmatch(group_id)
    return int(found[1]) if found is not None and int(found[1]) <= MAX_PROMPT_INDEX else None


def check_ids(trajectory_id: object, group_id: object, group_size: object) -> int:
    """The prompt's index that a trajectory's ids agree on.

    Raises:
      ContractError: the group's id is none, or the trajectory's is not that of one of its `group_size` samples.
    """
    index = prompt_index(group_id)
    if type(group_size) is not int or not 1 <= group_size <= MAX_GROUP_SIZE:
        check_integer(f"{group_id}: group_size", group_size, 1, MAX_GROUP_SIZE)
    group, _, sample = trajectory_id.rpartition("/") if isinstance(trajectory_id, str) else ("", "", "")
    if group != group_id or not _SAMPLE.fullmatch(sample) or int(sample) >= group_size:  # type: ignore[operator]
        raise ContractError(
            f"trajectory id {quoted(trajectory_id, 80)} is none of group {group_id}: expected {group_id}/<sample>, "
            f"0 to {group_size - 1}"  # type: ignore[operator]
        )
    return index


def check_trajectory_id(trajectory_id: object) -> None:
    """Raises `ContractError` unless it is a group's id and the number of a sample."""
    group, _, _ = trajectory_id.rpartition("/") if isinstance(trajectory_id, str) else ("", "", "")
    check_ids(trajectory_id, group, MAX_GROUP_SIZE)


def check_prompt(where: str, prompt: Mapping[str, Any], index: int) -> None:
    """Raises `ContractError` unless a prompt's fields are texts and numbers, and its index is the one of the id."""
    _check_mapping(where, prompt)
    for key, value in prompt.items():
        if isinstance(value, str):
            if len(value) > MAX_TEXT:
                raise ContractError(f"{where}: {key} has {len(value)} characters, expected at most {MAX_TEXT}")
            if not value.isascii():
                _check_encodes(f"{where}: {key}", value)
        elif not _is_scalar(value):
            raise ContractError(f"{where}: {key} is {quoted(value, 80)}, expected text, a finite number, or null")
    if "index" in prompt and (type(prompt["index"]) is not int or prompt["index"] != index):
        raise ContractError(f"{where}: index is {quoted(prompt['index'], 80)}, expected {index}, as the id says")


def check_sampling(where: str, sampling: Mapping[str, Any]) -> None:
    """Raises `ContractError` unless sampling parameters have their types and bounds."""
    _check_mapping(where, sampling)
    for key, value in sampling.items():
        if (known := _SAMPLING.get(key)) is not None:
            kind, lowest, highest = known
            if not is_number(value, lowest, highest) or (kind is int and type(value) is not int):
                name = "an integer" if kind is int else "a number"
                raise ContractError(
                    f"{where}: {key} is {quoted(value, 80)}, expected {name} from {lowest:g} to {highest:g}"
                )
        elif isinstance(value, str):
            check_printable(f"{where}: {key}", value)
        elif not _is_scalar(value):
            raise ContractError(f"{where}: {key} is {quoted(value, 80)}, expected text, a finite number, or null")


def check_parts(where: str, parts: Mapping[str, float]) -> None:
    """Raises `ContractError` unless the named parts of a reward are numbers of a size that rewards may have."""
    _check_mapping(where, parts)
    for key, value in parts.items():
        try:
            number = math.nan if isinstance(value, str | bytes) else float(value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not -MAX_REWARD <= number <= MAX_REWARD:
            raise ContractError(
                f"{where}: {key} is {quoted(value, 80)}, expected a number from {-MAX_REWARD:g} to {MAX_REWARD:g}"
            )


def _check_mapping(where: str, fields: object) -> None:
    if type(fields) is not dict and not isinstance(fields, Mapping):
        raise ContractError(f"{where} is {quoted(fields, 80)}, expected named fields")
    if len(fields) > MAX_FIELDS:
        raise ContractError(f"{where} has {len(fields)} fields, expected at most {MAX_FIELDS}")
    for key in fields:
        if type(key) is not str or len(key) > _MAX_KEY or not key.isprintable():
            check_printable(f"{where}: the name of a field", key, _MAX_KEY)


def _is_scalar(value: object) -> bool:
    if value is None or type(value) is bool:
        return True
    if type(value) is int:
        return -(2**63) <= value < 2**63
    return type(value) is float and math.isfinite(value)


def _check_encodes(where: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ContractError(f"{where} holds a lone surrogate at character {error.start}") from None
