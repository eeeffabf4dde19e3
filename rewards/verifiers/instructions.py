"""`instructions`: the answer follows each of the row's IFEval instructions."""

from __future__ import annotations

from rewards.contracts import RewardResult, scored
from rewards.instructions import InstructionError, follows, follows_loosely, read_instructions
from rewards.verifiers.columns import wrong
from rewards.verifiers.verifier import Plain, Row, RowError

_MODES = ("strict", "loose")
#: Checks take a second or two for so many; answers of 100,000 tokens are shorter.
_MAX_CHARACTERS = 500_000


def create(*, deadline_s: float, num_workers: int) -> Plain:
    return Plain(judge)


def judge(answer: str, row: Row) -> RewardResult:
    """Whether all of `row["instruction_id_list"]`, with the arguments in `row["kwargs"]`, are followed.

    The parts are the shares of instructions that are followed "strict" and "loose", and one part for each kind, which
    is 1 if all of it are followed. `row["mode"]` says which share decides; "strict" if there is none.

    An answer of more than 500,000 characters follows none.

    Raises:
      RowError: an instruction is unknown, or an argument missing or wrong.
    """
    mode = row.get("mode") or "strict"
    if mode not in _MODES:
        raise wrong("row.mode", mode, " or ".join(_MODES))
    try:
        instructions = read_instructions(row.get("instruction_id_list"), row.get("kwargs"))
        if len(answer) > _MAX_CHARACTERS:
            why = f"the answer has {len(answer)} characters, at most {_MAX_CHARACTERS} are read"
            return scored(0.0, {"strict": 0.0, "loose": 0.0}, reasons=(why,))
        strict = [follows(instruction, answer) for instruction in instructions]
        loose = [
            is_followed or follows_loosely(instruction, answer)
            for is_followed, instruction in zip(strict, instructions, strict=True)
        ]
    except InstructionError as error:
        raise RowError(str(error)) from None
    decides = strict if mode == "strict" else loose
    parts = {"strict": sum(strict) / len(strict), "loose": sum(loose) / len(loose)}
    for instruction, is_followed in zip(instructions, decides, strict=True):
        parts[instruction.kind] = min(parts.get(instruction.kind, 1.0), float(is_followed))
    missed = [kind for kind, value in parts.items() if ":" in kind and not value]
    return scored(float(all(decides)), parts, reasons=tuple(f"not followed: {kind}" for kind in missed))
