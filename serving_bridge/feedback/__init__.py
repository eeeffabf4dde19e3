"""Feedback about recorded answers: joined once, within a window, with consent; and the training data made of it."""

from serving_bridge.feedback.arrival import IMPLICIT, KINDS, Feedback, FeedbackPiece, read_feedback
from serving_bridge.feedback.cleaning import clean_datasets, uncleaned_datasets
from serving_bridge.feedback.copies import note_copy
from serving_bridge.feedback.datasets import (
    DATASET_KINDS,
    DatasetError,
    DatasetKind,
    Datasets,
    scores_of,
)
from serving_bridge.feedback.erasure import erase_online, unerased_groups
from serving_bridge.feedback.judge import JudgeError, NextTurnJudge, Turnabout, majority, turnabouts
from serving_bridge.feedback.online import OnlineFeed, OnlineTerms, groups_trained, withdrawn_groups
from serving_bridge.feedback.reactions import Reaction, reactions
from serving_bridge.feedback.schema import FEEDBACK, FEEDBACK_NOTICES
from serving_bridge.feedback.scores import Score, score_of
from serving_bridge.feedback.signals import Raters, RaterSignals, Verdict, binomial_tail, signals
from serving_bridge.feedback.store import OUTCOMES, FeedbackStore, Outcome, Stored, forget_sessions
from serving_bridge.feedback.trajectories import group_of, is_sample

__all__ = [
    "DATASET_KINDS",
    "FEEDBACK",
    "FEEDBACK_NOTICES",
    "IMPLICIT",
    "KINDS",
    "OUTCOMES",
    "DatasetError",
    "DatasetKind",
    "Datasets",
    "Feedback",
    "FeedbackPiece",
    "FeedbackStore",
    "JudgeError",
    "NextTurnJudge",
    "OnlineFeed",
    "OnlineTerms",
    "Outcome",
    "RaterSignals",
    "Raters",
    "Reaction",
    "Score",
    "Stored",
    "Turnabout",
    "Verdict",
    "binomial_tail",
    "clean_datasets",
    "erase_online",
    "forget_sessions",
    "group_of",
    "groups_trained",
    "is_sample",
    "majority",
    "note_copy",
    "reactions",
    "read_feedback",
    "score_of",
    "scores_of",
    "signals",
    "turnabouts",
    "uncleaned_datasets",
    "unerased_groups",
    "withdrawn_groups",
]
