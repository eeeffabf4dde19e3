"""Asks a model problems whose answers are known, and fits how far its answers can be believed."""

from tools.calibrating.asking import AskError, Asking, asked_answers
from tools.calibrating.known import KnownAnswer, halves, read_known, scores_of
from tools.calibrating.report import Compared, compared, fitted_on

__all__ = [
    "AskError",
    "Asking",
    "Compared",
    "KnownAnswer",
    "asked_answers",
    "compared",
    "fitted_on",
    "halves",
    "read_known",
    "scores_of",
]
