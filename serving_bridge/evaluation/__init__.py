"""Skill on held-out problems, and answers that nobody could judge."""

from serving_bridge.evaluation.figures import Evaluation, EvaluationError, Examined, versions_of
from serving_bridge.evaluation.heldout import HeldOut, single_answers
from serving_bridge.evaluation.single_answers import ask_each
from serving_bridge.evaluation.skill import Play, PromptEncoder, evaluate
from serving_bridge.evaluation.verdicts import VerdictWatch, reason_text, sound, unjudged

__all__ = [
    "Evaluation",
    "EvaluationError",
    "Examined",
    "HeldOut",
    "Play",
    "PromptEncoder",
    "VerdictWatch",
    "ask_each",
    "evaluate",
    "reason_text",
    "single_answers",
    "sound",
    "unjudged",
    "versions_of",
]
