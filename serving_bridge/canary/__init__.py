"""From a candidate to all users in small steps that undo themselves: tests, rules, controller and observations."""

from serving_bridge.canary.adjusted import Difference, Value, cuped, plain, stratified
from serving_bridge.canary.controller import LEASE_S, Controller, next_decision
from serving_bridge.canary.errors import CanaryError, PolicyError
from serving_bridge.canary.evidence import Sums, log_evidence, lower_bounds, upper_bounds
from serving_bridge.canary.looks import ALL, Arm, Cell, Decision, Finding, Look, State
from serving_bridge.canary.machine import compare, decide
from serving_bridge.canary.metrics import MEASURES, SCORE_PREFIX, Measure
from serving_bridge.canary.moves import PREVIOUS, Place
from serving_bridge.canary.observations import LogSource, Observation, ObservationLog, Seen, Source
from serving_bridge.canary.observer import Observer, distinct_pairs, measures
from serving_bridge.canary.off_policy import Estimate, Logged, OffPolicy, off_policy
from serving_bridge.canary.policy import CanaryPolicy, MetricPolicy, StepPolicy, load_policy, parse_policy
from serving_bridge.canary.power import Question, fixed_size, looking_size
from serving_bridge.canary.reacted import Reacted, observe_reactions
from serving_bridge.canary.replaying import replay
from serving_bridge.canary.rollouts import Decided, Record, Rollout, Rollouts
from serving_bridge.canary.schema import CANARY, OBSERVATIONS
from serving_bridge.canary.service import Service
from serving_bridge.canary.tails import bar_of, exceeds
from serving_bridge.canary.training_hold import TrainingHold
from serving_bridge.canary.training_note import TrainingNote, note_newest, read_note, write_note

__all__ = [
    "ALL",
    "CANARY",
    "LEASE_S",
    "MEASURES",
    "OBSERVATIONS",
    "PREVIOUS",
    "SCORE_PREFIX",
    "Arm",
    "CanaryError",
    "CanaryPolicy",
    "Cell",
    "Controller",
    "Decided",
    "Decision",
    "Difference",
    "Estimate",
    "Finding",
    "LogSource",
    "Logged",
    "Look",
    "Measure",
    "MetricPolicy",
    "Observation",
    "ObservationLog",
    "Observer",
    "OffPolicy",
    "Place",
    "PolicyError",
    "Question",
    "Reacted",
    "Record",
    "Rollout",
    "Rollouts",
    "Seen",
    "Service",
    "Source",
    "State",
    "StepPolicy",
    "Sums",
    "TrainingHold",
    "TrainingNote",
    "Value",
    "bar_of",
    "compare",
    "cuped",
    "decide",
    "distinct_pairs",
    "exceeds",
    "fixed_size",
    "load_policy",
    "log_evidence",
    "looking_size",
    "lower_bounds",
    "measures",
    "next_decision",
    "note_newest",
    "observe_reactions",
    "off_policy",
    "parse_policy",
    "plain",
    "read_note",
    "replay",
    "stratified",
    "upper_bounds",
    "write_note",
]
