"""The metrics of recorded sessions, as a gateway's events have them, and of what the learner makes of them."""

from __future__ import annotations

from serving_bridge.metrics.metric import Metric, counter, gauge

SESSIONS: tuple[Metric, ...] = (
    counter("weir_sessions_answers_total", "answers", "Answers that were kept", "gateway", "sessions_answers"),
    counter(
        "weir_sessions_unkept_total", "answers",
        "Answers with consent that were not kept: their session could not be looked up or written",
        "gateway", "sessions_unkept",
    ),
    counter(
        "weir_sessions_rebuilt_total", "requests", "Requests that no recorded answer matched", "gateway",
        "sessions_rebuilt",
    ),
    counter("weir_sessions_redacted_total", "texts", "Texts stored without ids", "gateway", "sessions_redacted"),
    counter(
        "weir_sessions_withdrawn_total", "answers", "Answers dropped since consent was withdrawn", "gateway",
        "sessions_withdrawn",
    ),
    gauge("weir_sessions_pending", "answers", "Kept answers that the database lacks", "gateway", "sessions_pending"),
    *(
        counter(
            f"weir_feedback_{outcome}_total", "pieces", f"Feedback that was {outcome}", "gateway", f"feedback_{outcome}"
        )
        for outcome in ("joined", "duplicate", "conflict", "late", "unknown", "capped")
    ),
)  # fmt: skip

ONLINE: tuple[Metric, ...] = (
    gauge("weir_learner_online_groups", "groups", "Groups of users in the newest step", "step", "online_groups"),
    gauge("weir_learner_online_answers", "answers", "Answers of users in the newest step", "step", "online_answers"),
    gauge("weir_learner_online_reward_mean", "reward", "Their mean reward", "step", "online_reward"),
    gauge(
        "weir_learner_online_staleness_max", "policy versions", "Largest lag of their oldest token", "step",
        "online_staleness_max",
    ),
)  # fmt: skip
