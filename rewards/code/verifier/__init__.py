"""Judges answers that are code, by the tests of their rows."""

from rewards.code.verifier.answer_code import answer_code
from rewards.code.verifier.judge import DEADLINE_S, CodeVerifier

__all__ = ["DEADLINE_S", "CodeVerifier", "answer_code"]
