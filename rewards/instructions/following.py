"""Whether an answer follows its instructions, strictly or loosely (IFEval, arXiv 2311.07911, section 2.2)."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rewards.instructions.arguments import Arguments, InstructionError
from rewards.instructions.kinds import KINDS
from rewards.instructions.texts import is_blank

_MAX_INSTRUCTIONS = 100


@dataclass(frozen=True)
class Instruction:
    """One instruction: its kind, and its arguments as the data has them."""

    kind: str
    arguments: Mapping[str, Any]


def read_instructions(kinds: Any, arguments: Any) -> list[Instruction]:
    """The instructions of a row.

    Args:
      kinds: list of names such as "punctuation:no_comma".
      arguments: list of as many objects; None for instructions that all need none.

    Raises:
      InstructionError: a name is unknown, or the lists don't go together.
    """
    if not isinstance(kinds, list | tuple) or not 0 < len(kinds) <= _MAX_INSTRUCTIONS:
        raise InstructionError(f"instruction_id_list is {kinds!r:.100}, expected a list of names")
    given = [{}] * len(kinds) if arguments is None else arguments
    if not isinstance(given, list | tuple) or len(given) != len(kinds):
        raise InstructionError(f"kwargs is {given!r:.100}, expected a list of {len(kinds)} objects")
    found = []
    for kind, one in zip(kinds, given, strict=True):
        if kind not in KINDS:
            close = difflib.get_close_matches(str(kind), KINDS, n=1)
            hint = f"did you mean {close[0]}? " if close else ""
            raise InstructionError(f"instruction {kind!r:.100} is unknown; {hint}known: {', '.join(KINDS)}")
        if one is not None and not isinstance(one, Mapping):
            raise InstructionError(f"kwargs holds {one!r:.100}, expected an object")
        found.append(Instruction(kind, one or {}))
    return found


def follows(instruction: Instruction, answer: str) -> bool:
    """Whether the answer as it is follows the instruction. A blank answer follows none.

    Raises:
      InstructionError: an argument is missing or wrong.
    """
    is_followed = KINDS[instruction.kind](answer, Arguments(instruction.kind, instruction.arguments))
    return is_followed and not is_blank(answer)


def follows_loosely(instruction: Instruction, answer: str) -> bool:
    """Whether the answer, or the answer without its first line, last line or asterisks, follows the instruction.

    Raises:
      InstructionError: an argument is missing or wrong.
    """
    return any(follows(instruction, variant) for variant in _variants(answer))


def _variants(answer: str) -> Sequence[str]:
    lines = answer.split("\n")
    cut = [answer, *("\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1]))]
    return list(dict.fromkeys([*cut, *(text.replace("*", "") for text in cut)]))
