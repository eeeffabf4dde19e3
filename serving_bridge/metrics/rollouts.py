"""Metrics of the canary's controller: where the rollout of a namespace stands, and what came of those before it."""

from __future__ import annotations

from serving_bridge.metrics.metric import Metric
from serving_bridge.metrics.metric import counter as _counter
from serving_bridge.metrics.metric import gauge as _gauge
from serving_bridge.metrics.metric import state as _state

_EVENT = "canary"

CANARY: tuple[Metric, ...] = (
    _gauge("weir_canary_open", "1 or 0", "Whether a rollout is under way", _EVENT, "open"),
    _state("weir_canary_phase", "Phase of the newest rollout", _EVENT, "phase", "phase"),
    _gauge("weir_canary_rollout", "number", "The newest rollout", _EVENT, "rollout"),
    _gauge("weir_canary_entry", "number", "Entry that it is of", _EVENT, "entry"),
    _gauge("weir_canary_step", "steps", "Its step, from 1 on", _EVENT, "step"),
    _gauge("weir_canary_step_seconds", "seconds", "Time in that step, as it is counted", _EVENT, "step_s"),
    _gauge("weir_canary_max_hold_seconds", "seconds", "Its bound: the policy's max_hold_s", _EVENT, "max_hold_s"),
    _gauge("weir_canary_interval_seconds", "seconds", "The policy's interval_s", _EVENT, "interval_s"),
    _gauge("weir_canary_last_look_timestamp_seconds", "unix seconds", "When the last look was", _EVENT, "looked_s"),
    _gauge("weir_canary_leads", "1 or 0", "Whether this controller is at work", _EVENT, "leads"),
    _counter("weir_canary_looks_total", "looks", "Looks that this controller made", "look"),
    _counter("weir_canary_promotions_total", "rollouts", "Candidates that it made stable", "rollout", "promoted"),
    _counter("weir_canary_rollbacks_total", "rollouts", "Candidates that it took back", "rollout", "rolled_back"),
    _counter("weir_canary_inconclusive_total", "rollouts", "Rollouts without a verdict", "rollout", "inconclusive"),
    _counter("weir_canary_failures_total", "errors", "New reasons why it could not look", "waits"),
)
