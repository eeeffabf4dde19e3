"""Skill on held-out problems, and answers that nobody could judge."""

from serving_bridge.evaluation.heldout import HeldOut
from serving_bridge.evaluation.skill import Evaluation, PromptEncoder, evaluate
from serving_bridge.evaluation.verdicts import VerdictWatch, reason_text, sound, unjudged

__all__ = ["Evaluation", "HeldOut", "PromptEncoder", "VerdictWatch", "evaluate", "reason_text", "sound", "unjudged"]
