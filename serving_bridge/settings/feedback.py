"""Settings of feedback: for how long it joins, how much one rater may give, and which raters are set aside."""

from __future__ import annotations

from pydantic import Field, model_validator

from learner_jax.contracts import Settings
from serving_bridge.settings.addresses import check_address


class FeedbackSettings(Settings):
    """Feedback of users and agents about recorded answers (sessions.record)."""

    window_s: float = Field(
        7 * 86_400.0,
        gt=0,
        description="seconds after an answer in which feedback joins it; what is later is unused",
    )
    per_rater_hour: int = Field(600, ge=1, description="pieces of feedback that one rater may give in an hour")
    online_wait_s: float = Field(
        3600.0,
        ge=0,
        description="seconds after an answer before it may become an online trajectory, as scored so far",
    )
    max_outcome: float = Field(
        10.0,
        gt=0,
        le=1e6,
        description="largest outcome or reward, above or below 0: one voice must not outweigh a batch",
    )
    max_text_chars: int = Field(65_536, ge=1, le=1 << 20, description="longest edit, in characters")
    webhooks: tuple[str, ...] = Field((), max_length=10, description="addresses that are told of feedback that joined")
    webhook_secret_env: str = Field(
        "", description="environment variable with the key that these messages are signed with, 16 characters or more"
    )
    flood_factor: float = Field(
        20.0,
        gt=1,
        description="a rater is set aside who gives more than so many times the median of its tenant",
    )
    collusion_p: float = Field(
        1e-4, gt=0, lt=1, description="two raters are set aside who agree so often that chance gives this, or less"
    )
    flip_share: float = Field(
        0.5, gt=0, le=1, description="a rater is set aside who takes back more than this share of at least ten verdicts"
    )

    @model_validator(mode="after")
    def _webhooks_can_be_told(self) -> FeedbackSettings:
        for address in self.webhooks:
            check_address("feedback.webhooks", address)
        if self.webhooks and not self.webhook_secret_env:
            raise ValueError("feedback.webhooks needs feedback.webhook_secret_env: messages are signed")
        return self
