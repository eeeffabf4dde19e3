"""Final answers of mathematics: read, compared and proven by a parser of our own."""

from rewards.mathematics.final_answer import MARK, final_answer
from rewards.mathematics.references import Reference, judge, read_reference
from rewards.mathematics.values import MathError

__all__ = ["MARK", "MathError", "Reference", "final_answer", "judge", "read_reference"]
