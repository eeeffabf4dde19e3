"""Final answers of mathematics: read, compared and proven by a parser of our own."""

from rewards.mathematics.final_answer import MARK
from rewards.mathematics.references import judge, read_reference
from rewards.mathematics.values import MathError

__all__ = ["MARK", "MathError", "judge", "read_reference"]
