"""The 25 kinds of instruction of IFEval (arXiv 2311.07911): which answers follow them."""

from rewards.instructions.arguments import InstructionError
from rewards.instructions.following import Instruction, follows, follows_loosely, read_instructions
from rewards.instructions.kinds import KINDS
from rewards.instructions.texts import is_blank

__all__ = ["KINDS", "Instruction", "InstructionError", "follows", "follows_loosely", "is_blank", "read_instructions"]
