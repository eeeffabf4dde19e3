"""Settings of recorded sessions: whether conversations of users are kept, how, and for how long."""

from __future__ import annotations

from pydantic import Field

from learner_jax.contracts import Settings


class SessionsSettings(Settings):
    """Recorded conversations of users, for feedback and training. Nothing is kept without consent."""

    record: bool = Field(
        False,
        description="keep conversations whose tenant and request both consent; without gateway.require_keys the one "
        "tenant has consented by this",
    )
    retention_days: int = Field(
        30, ge=1, le=3650, description="days that a conversation is kept after its last answer; a tenant may have fewer"
    )
    redact: bool = Field(
        True,
        description="replace personal data and secrets before anything is stored; such a text has no token ids, and "
        "only its text can be learned from",
    )
    max_answers: int = Field(200, ge=1, le=10_000, description="answers of one session; then another one begins")
    resume_s: float = Field(
        7 * 86_400.0, gt=0, description="seconds after its last answer in which a request may go on with a session"
    )
    cached: int = Field(1024, ge=1, description="sessions that a process of the gateway holds in memory")
    lookup_timeout_s: float = Field(
        0.5,
        gt=0,
        le=60,
        description="seconds that a request waits for its session; then it is not kept",
    )
    explore_share: float = Field(
        0.0, ge=0, le=0.5, description="share of kept requests without a temperature that get explore_temperature"
    )
    explore_temperature: float = Field(1.2, ge=0.01, le=2, description="temperature of the explored share")
