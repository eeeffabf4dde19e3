"""The one table of Weir's metrics: what each process serves, under which name, in which unit, from which event.

Names follow Prometheus: base units, `_total` for counters. `python -m tools.metrics --markdown` prints docs/metrics.md
from it. The rules and dashboards in `configs/monitoring` name metrics of this table and of vLLM alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from serving_bridge.metrics.metric import ANY_EVENT, Metric
from serving_bridge.metrics.metric import counter as _counter
from serving_bridge.metrics.metric import gauge as _gauge
from serving_bridge.metrics.metric import state as _state
from serving_bridge.metrics.rollouts import CANARY
from serving_bridge.metrics.sessions import ONLINE, SESSIONS

Role = Literal["learner", "rollout", "fleet", "gateway", "train", "canary"]
#: Of a run's processes; the canary's controller is a registry's.
ROLES: tuple[Role, ...] = ("learner", "rollout", "fleet", "gateway", "train")

_NATS, _SHARE, _VERSIONS = "nats per token", "share, 0 to 1", "policy versions"

EVERY: tuple[Metric, ...] = (
    _gauge("weir_last_event_timestamp_seconds", "unix seconds", "When the process last wrote an event", ANY_EVENT, "t"),
    Metric(
        "weir_longest_wait_seconds",
        "gauge",
        "seconds",
        "Longest of the waits that the process is in; 0 without one of a second or more",
        "waits",
        "waits",
        largest="waited_s",
    ),
    _counter("weir_logger_failures_total", "events", "Times that a logger told of failures or lost events", "logger"),
    _counter("weir_labels_refused_total", "values", "Label values left out: no plain name, or too many", "labels"),
    _gauge("weir_settings_steps", "steps", "learner.steps: length of the run", "settings", "steps"),
    _gauge("weir_settings_groups_per_step", "groups", "learner.groups_per_step", "settings", "groups_per_step"),
    _gauge("weir_settings_group_size", "answers", "rollout.group_size", "settings", "group_size"),
    _gauge("weir_settings_max_staleness", _VERSIONS, "rollout.max_staleness", "settings", "max_staleness"),
    _gauge("weir_settings_replicas", "replicas", "serving.replicas: of one fleet", "settings", "replicas"),
)

LEARNER: tuple[Metric, ...] = (
    _counter("weir_learner_steps_total", "steps", "Train steps that this process made", "step"),
    _gauge("weir_learner_step", "steps", "Number of the newest train step", "step", "step"),
    _gauge("weir_learner_version", _VERSIONS, "Policy version that the newest step started from", "step", "version"),
    _gauge("weir_learner_last_step_timestamp_seconds", "unix seconds", "When the newest step ended", "step", "t"),
    _gauge("weir_learner_loss", "loss", "Loss of the newest step", "step", "loss"),
    _gauge("weir_learner_reward_mean", "reward", "Mean reward of the judged answers", "step", "reward"),
    _gauge(
        "weir_learner_reward_part_mean",
        "reward",
        "Mean of each part of the reward, over the answers that have it",
        "step",
        "reward_parts.*",
        "part",
    ),
    _gauge("weir_learner_entropy_nats", _NATS, "Entropy of the policy", "step", "entropy"),
    _gauge("weir_learner_kl_nats", _NATS, "KL of the policy to the reference (k3)", "step", "kl"),
    _gauge("weir_learner_kl_coefficient", "factor", "Coefficient of the KL term", "step", "kl_coefficient"),
    _gauge("weir_learner_clip_fraction", _SHARE, "Tokens whose ratio is clipped", "step", "clip_fraction"),
    _gauge("weir_learner_importance_ratio_mean", "ratio", "Mean ratio of policy to sampler", "step", "ratio"),
    _gauge(
        "weir_learner_lagged_log_ratio_max",
        "nats",
        "Largest absolute log ratio of tokens that older versions sampled",
        "step",
        "lagged_log_ratio_max",
    ),
    _gauge(
        "weir_learner_effective_sample_share",
        _SHARE,
        "Effective sample size over tokens",
        "step",
        "effective_sample_share",
    ),
    _gauge("weir_learner_gradient_norm", "norm", "Norm of the gradient before clipping", "step", "grad_norm"),
    _gauge(
        "weir_learner_mismatch_mean_nats",
        _NATS,
        "Mean absolute difference of the sampler's log-probs to the learner's, same version",
        "step",
        "mismatch_mean_abs_logprob",
    ),
    _gauge(
        "weir_learner_mismatch_max_nats",
        "nats",
        "Largest such difference",
        "step",
        "mismatch_max_abs_logprob",
    ),
    _gauge(
        "weir_learner_mismatch_masked_share",
        _SHARE,
        "Tokens that the correction of the mismatch took out of the loss",
        "step",
        "mismatch_masked",
    ),
    _gauge("weir_learner_staleness_mean", _VERSIONS, "Mean lag of the answers' oldest token", "step", "staleness_mean"),
    _gauge("weir_learner_staleness_max", _VERSIONS, "Largest such lag", "step", "staleness_max"),
    _gauge("weir_learner_answer_tokens_mean", "tokens", "Mean length of an answer", "step", "answer_tokens_mean"),
    _gauge("weir_learner_truncated_share", _SHARE, "Answers cut at their longest length", "step", "truncated_share"),
    _gauge(
        "weir_learner_zero_variance_groups",
        "groups",
        "Groups of the step whose answers all have the same reward",
        "step",
        "zero_variance_groups",
    ),
    _gauge("weir_learner_value_loss", "loss", "Loss of the value head", "step", "value_loss"),
    _gauge(
        "weir_learner_value_explained_variance",
        "share, at most 1",
        "Share of the targets' variance that the values explain",
        "step",
        "value_explained_variance",
    ),
    _counter("weir_learner_tokens_total", "tokens", "Sampled tokens trained on", "step", "num_tokens"),
    _counter(
        "weir_learner_skipped_steps_total", "steps", "Steps with a loss or gradient not finite", "step", "skipped"
    ),
    _counter("weir_learner_empty_steps_total", "steps", "Steps with an update without any weight", "step", "empty"),
    _counter(
        "weir_learner_dropped_stale_groups_total", "groups", "Groups dropped as too stale", "step", "dropped_stale"
    ),
    _counter("weir_learner_dropped_groups_total", "groups", "Groups that taught nothing", "step", "dropped_groups"),
    _counter("weir_learner_unjudged_groups_total", "groups", "Groups with too few verdicts", "step", "unjudged_groups"),
    _counter("weir_learner_failed_verdicts_total", "answers", "Answers without verdict", "step", "failed_verdicts"),
    _counter("weir_learner_mixed_answers_total", "answers", "Answers of two versions", "step", "mixed_version_answers"),
    _counter("weir_learner_masked_overlong_total", "answers", "Overlong answers masked", "step", "masked_overlong"),
    _counter("weir_learner_masked_aborted_total", "answers", "Broken-off answers masked", "step", "masked_aborted"),
    _gauge("weir_learner_step_seconds", "seconds", "Time of the newest step", "step", "step_s"),
    _counter("weir_learner_busy_seconds_total", "seconds", "Time in steps", "step", "step_s"),
    _counter("weir_learner_wait_seconds_total", "seconds", "Time in which steps waited for groups", "step", "wait_s"),
    _counter("weir_learner_prepare_seconds_total", "seconds", "Time of building batches", "step", "prepare_s"),
    _counter(
        "weir_learner_transfer_seconds_total", "seconds", "Time until the devices have a batch", "step", "transfer_s"
    ),
    _counter("weir_learner_compute_seconds_total", "seconds", "Time of the devices", "step", "compute_s"),
    _counter("weir_learner_publish_seconds_total", "seconds", "Time that publishing blocked", "step", "publish_s"),
    _counter("weir_learner_save_seconds_total", "seconds", "Time that saving blocked", "step", "save_s"),
    _gauge("weir_learner_mfu", _SHARE, "Model FLOP/s over the devices' peak", "step", "mfu"),
    _gauge("weir_learner_real_token_share", _SHARE, "Slots of the batch that hold a token", "step", "real_token_share"),
    _gauge("weir_learner_published_version", _VERSIONS, "Newest published version", "published", "version"),
    _gauge("weir_learner_published_bytes", "bytes", "Size of the newest published version", "published", "num_bytes"),
    _gauge("weir_learner_published_seconds", "seconds", "Time of the newest publish", "published", "seconds"),
    _gauge("weir_learner_held", "1 or 0", "Whether training is held after a rollback", "hold", "held"),
    _counter("weir_learner_hold_unread_total", "errors", "Times that no note to training could be read", "hold_unread"),
    _counter("weir_learner_anchor_failures_total", "versions", "Whole versions not stored again", "anchor_failed"),
    _gauge("weir_learner_committed_step", "steps", "Newest checkpoint on the disk", "committed", "step"),
    _gauge("weir_learner_commit_seconds", "seconds", "Time until it was there", "committed", "seconds"),
    _gauge("weir_learner_copied_step", "steps", "Newest checkpoint in object storage", "copied", "step"),
    _gauge("weir_learner_copy_seconds", "seconds", "Time until it was there", "copied", "seconds"),
    _counter("weir_learner_late_commits_total", "checkpoints", "Checkpoints slow to reach the disk", "uncommitted"),
    _counter("weir_learner_host_failures_total", "failures", "Hosts that could not go on", "host_failed"),
    _gauge("weir_learner_warm_start_accuracy", _SHARE, "Accuracy of the supervised start", "warm_start", "accuracy"),
    _gauge("weir_learner_warm_start_step", "steps", "Step of the supervised start", "warm_start", "step"),
)

_INTERVAL = "interval"
ROLLOUT: tuple[Metric, ...] = (
    _counter("weir_rollout_groups_total", "groups", "Groups put into the queue", _INTERVAL, "groups"),
    _counter("weir_rollout_tokens_total", "tokens", "Tokens sampled", _INTERVAL, "tokens"),
    _counter("weir_rollout_seconds_total", "seconds", "Time that the worker has counted", _INTERVAL, "seconds"),
    _counter("weir_rollout_idle_seconds_total", "seconds", "Time in which no group was sampled", _INTERVAL, "idle_s"),
    _gauge("weir_rollout_running_groups", "groups", "Groups being sampled", _INTERVAL, "running"),
    _gauge("weir_rollout_served_version", _VERSIONS, "Version that the replicas serve", _INTERVAL, "served_version"),
    _gauge("weir_rollout_waiting_requests", "requests", "Requests that wait for room", _INTERVAL, "waiting_requests"),
    _gauge(
        "weir_rollout_in_flight_answers",
        "answers",
        "Answers of this worker in flight on a replica",
        _INTERVAL,
        "replicas.*.in_flight",
        "replica",
    ),
    _gauge(
        "weir_rollout_limit_answers",
        "answers",
        "Most answers that this worker has in flight on a replica",
        _INTERVAL,
        "replicas.*.limit",
        "replica",
    ),
    _counter("weir_rollout_limit_cuts_total", "cuts", "Times that a limit was cut", _INTERVAL, "cuts"),
    _counter("weir_rollout_retries_total", "requests", "Requests tried again", _INTERVAL, "retries"),
    _counter(
        "weir_rollout_mixed_answers_total", "answers", "Answers of two versions", _INTERVAL, "mixed_version_answers"
    ),
    _counter("weir_rollout_skipped_prompts_total", "prompts", "Prompts too long", _INTERVAL, "skipped_prompts"),
    _counter(
        "weir_rollout_left_out_prompts_total",
        "prompts",
        "Prompts that a measured curriculum passed over",
        _INTERVAL,
        "left_out_prompts",
    ),
    _counter("weir_rollout_failed_groups_total", "groups", "Groups given up", _INTERVAL, "failed_groups"),
    _counter(
        "weir_rollout_verdicts_total", "answers", "Answers that a verifier was asked about", _INTERVAL, "verdicts"
    ),
    _counter("weir_rollout_failed_verdicts_total", "answers", "Those without verdict", _INTERVAL, "failed_verdicts"),
    _counter(
        "weir_rollout_unjudged_groups_total", "groups", "Groups with too few verdicts", _INTERVAL, "unjudged_groups"
    ),
    _counter("weir_rollout_resumed_total", "answers", "Answers taken up after an abort", _INTERVAL, "resumed"),
    _counter("weir_rollout_segments_total", "pieces", "Further pieces of answers", _INTERVAL, "segments"),
    _counter("weir_rollout_spares_used_total", "answers", "Spare answers used", _INTERVAL, "spares_used"),
    _counter("weir_rollout_deadline_hits_total", "episodes", "Episodes broken off", _INTERVAL, "deadline_hits"),
    _counter("weir_rollout_environment_turns_total", "turns", "Observations given", _INTERVAL, "environment_turns"),
    _counter(
        "weir_rollout_environment_close_errors_total",
        "episodes",
        "Episodes whose environment failed to end them",
        _INTERVAL,
        "environment_close_errors",
    ),
    _counter("weir_rollout_agent_answers_total", "answers", "Answers to agents", _INTERVAL, "agent_answers"),
    _counter(
        "weir_rollout_agent_side_answers_total",
        "answers",
        "Those not on the way to the last answer of their episode",
        _INTERVAL,
        "agent_side_answers",
    ),
    _counter(
        "weir_rollout_agent_rebuilt_total",
        "requests",
        "Requests of agents that could not go on from recorded ids",
        _INTERVAL,
        "agent_rebuilt",
    ),
    _counter("weir_rollout_queue_full_total", "puts", "Puts that a full queue refused", _INTERVAL, "queue_full_waits"),
    _counter("weir_rollout_lost_claims_total", "groups", "Groups that another took over", _INTERVAL, "lost_claims"),
    _counter(
        "weir_rollout_released_groups_total",
        "groups",
        "Groups whose wait for rewards ended with its window, and that went on",
        _INTERVAL,
        "released_groups",
    ),
    _counter(
        "weir_rollout_unrewarded_groups_total",
        "groups",
        "Groups dropped at the end of their window: too few rewards came",
        _INTERVAL,
        "unrewarded_groups",
    ),
    _gauge("weir_rollout_heldout_accuracy", _SHARE, "Accuracy on held-out problems", "heldout", "accuracy"),
    _gauge("weir_rollout_heldout_score_mean", "score", "Mean score on held-out problems", "heldout", "mean_score"),
    _counter(
        "weir_rollout_source_groups_total", "groups", "Groups of each source", _INTERVAL, "sources.*.groups", "source"
    ),
    _counter(
        "weir_rollout_source_answers_total",
        "answers",
        "Judged answers of each source",
        _INTERVAL,
        "sources.*.answers",
        "source",
    ),
    _counter(
        "weir_rollout_source_passes_total",
        "answers",
        "Those of them that passed",
        _INTERVAL,
        "sources.*.passes",
        "source",
    ),
    _gauge(
        "weir_rollout_source_reward_mean",
        "reward",
        "Mean reward of a source's judged answers, of late",
        _INTERVAL,
        "sources.*.reward_mean",
        "source",
    ),
    _counter(
        "weir_rollout_source_episodes_total",
        "episodes",
        "Answers, or dialogs, of each source, judged or not",
        _INTERVAL,
        "sources.*.episodes",
        "source",
    ),
    _counter(
        "weir_rollout_source_tokens_total",
        "tokens",
        "Tokens sampled in these",
        _INTERVAL,
        "sources.*.tokens",
        "source",
    ),
    _gauge(
        "weir_rollout_source_heldout_accuracy",
        _SHARE,
        "Accuracy on held-out problems of each source",
        "heldout",
        "sources.*.accuracy",
        "source",
    ),
    _gauge("weir_rollout_heldout_step", "steps", "Step that these were measured at", "heldout", "step"),
)

FLEET: tuple[Metric, ...] = (
    _counter(
        "weir_fleet_rounds_total", "rounds", "Weight rounds by outcome", "round", "", "outcome", by="outcome"
    ),
    _gauge(
        "weir_fleet_round_version", _VERSIONS, "Version of a replica's newest round", "round", "version", "replica",
        by="replica",
    ),
    _counter(
        "weir_fleet_pause_seconds_total", "seconds", "Time that a replica was paused", "round", "pause_s", "replica",
        by="replica",
    ),
    _gauge(
        "weir_fleet_pause_seconds", "seconds", "Pause of a replica's newest round", "round", "pause_s", "replica",
        by="replica",
    ),
    _gauge(
        "weir_fleet_stage_seconds", "seconds", "Staging of a replica's newest round", "round", "stage_s", "replica",
        by="replica",
    ),
    _gauge(
        "weir_fleet_probe_max_nats", "nats", "Largest log-prob difference of the golden prompts", "round",
        "probe_max_abs", "replica", by="replica",
    ),
    _state("weir_fleet_replica_state", "State of a replica", "replica", "state", "replica", "state", by="replica"),
    _gauge(
        "weir_fleet_replica_version", _VERSIONS, "Version that a replica serves; -1 before the first", "replica",
        "version", "replica", by="replica",
    ),
    _gauge(
        "weir_fleet_replica_start_seconds", "seconds", "Time of a replica's newest start", "replica_started",
        "seconds", "replica", by="replica",
    ),
    _counter("weir_fleet_replicas_lost_total", "replicas", "Replicas that ended or hung", "replica_lost"),
    _counter("weir_fleet_replica_restarts_total", "restarts", "Restarts of replicas", "replica_restart"),
    _counter("weir_fleet_replica_failures_total", "starts", "Replicas that could not start or end", "replica_failed"),
    _counter("weir_fleet_files_failed_total", "failures", "Files that could not be read or written", "files_failed"),
    _counter("weir_fleet_versions_damaged_total", "versions", "Versions that can't be loaded", "version_damaged"),
    _counter("weir_fleet_page_failures_total", "pages", "Replicas whose own metrics gave no answer", "page_failed"),
)  # fmt: skip

GATEWAY: tuple[Metric, ...] = (
    _gauge("weir_gateway_requests_in_flight", "requests", "Requests that are being answered", "gateway", "in_flight"),
    _gauge("weir_gateway_replicas", "replicas", "Replicas that take requests", "gateway", "replicas"),
    _counter("weir_gateway_requests_total", "requests", "By HTTP status, or gone", "gateway", "statuses.*", "status"),
    _counter("weir_gateway_prompt_tokens_total", "tokens", "Tokens of answered prompts", "gateway", "prompt_tokens"),
    _counter("weir_gateway_completion_tokens_total", "tokens", "Tokens sampled", "gateway", "completion_tokens"),
    _counter("weir_gateway_answers_begun_total", "answers", "Answers with a first token", "gateway", "begun"),
    _counter(
        "weir_gateway_first_token_seconds_total", "seconds",
        "Time to the first token, summed; divide by the answers begun", "gateway", "first_token_s",
    ),
    _gauge("weir_gateway_requests_waiting", "requests", "Waiting, by class", "gateway", "waiting.*", "class"),
    _gauge("weir_gateway_unwritten_bills", "answers", "Bills on this host", "gateway", "unwritten_bills"),
    _gauge("weir_gateway_cut_off", "1 or 0", "Whether the tenants' database is away", "gateway", "cut_off"),
    _counter("weir_gateway_fallbacks_total", "answers", "By case and policy", "gateway", "fallbacks.*", "fallback"),
    _counter("weir_gateway_replicas_lost_total", "tries", "Tries that a replica failed", "gateway", "replicas_lost"),
    _counter("weir_gateway_arm_requests_total", "requests", "Requests by their arm", "gateway", "arms.*", "arm"),
    _gauge("weir_gateway_canary_share", _SHARE, "Share of the conversations on the canary", "split", "canary_share"),
    _counter("weir_gateway_shadows_total", "requests", "Copies that the canary was given", "gateway", "shadows"),
    _counter("weir_gateway_shadows_left_out_total", "requests", "Copies left out", "gateway", "shadows_left_out"),
    _counter("weir_gateway_split_unread_total", "errors", "New reasons why no split could be read", "split_unread"),
)  # fmt: skip

TRAIN: tuple[Metric, ...] = (
    _state("weir_run_phase", "Phase of the run", "phase", "name", "phase"),
    _counter("weir_run_restarts_total", "restarts", "Restarts of the run's processes", "restart"),
    _gauge("weir_run_accuracy", _SHARE, "Held-out accuracy", "evaluation", "accuracy", "which", by="which"),
    _gauge("weir_run_score_mean", "score", "Held-out mean score", "evaluation", "mean_score", "which", by="which"),
    _gauge("weir_queue_up", "1 or 0", "Whether the queue could be read", "queue", "up"),
    _gauge("weir_queue_ready_groups", "groups", "Groups that wait for the learner", "queue", "num_ready"),
    _gauge("weir_queue_leased_groups", "groups", "Groups that the learner holds", "queue", "num_leased"),
    _gauge("weir_queue_claimed_prompts", "prompts", "Prompts being worked on", "queue", "num_claimed"),
    _gauge("weir_queue_dead_groups", "groups", "Dead letters", "queue", "num_dead"),
    _gauge("weir_queue_dropped_groups", "groups", "Groups dropped since the run began", "queue", "num_dropped"),
    _gauge("weir_queue_trained_version", _VERSIONS, "Version that the learner made known", "queue", "trained_version"),
    _gauge("weir_queue_completed_steps", "steps", "Steps that the learner made known", "queue", "completed_steps"),
)  # fmt: skip

#: Role -> what its processes serve; every one also serves `EVERY`.
METRICS: Mapping[Role, Sequence[Metric]] = {
    "learner": (*EVERY, *LEARNER, *ONLINE),
    "rollout": (*EVERY, *ROLLOUT),
    "fleet": (*EVERY, *FLEET),
    "gateway": (*EVERY, *GATEWAY, *SESSIONS),
    "train": (*EVERY, *TRAIN),
    "canary": (*EVERY, *CANARY),
}
