"""The settings of the guards."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from learner_jax.contracts import Settings

OnError = Literal["closed", "open"]
#: Categories that block a text unless the settings say otherwise; the others flag it.
BLOCKED = (
    "child_safety", "crime", "cyber", "drugs", "fraud", "harassment", "hate", "misinformation", "privacy",
    "prompt_injection", "self_harm", "sexual", "violence", "weapons",
)  # fmt: skip


class TenantSafetySettings(Settings):
    """What differs for one tenant; training data fails closed for all."""

    prompt: OnError | None = Field(None, description="what happens to prompts when a guard fails")
    answer: OnError | None = Field(None, description="what happens to answers when a guard fails")


class SafetySettings(Settings):
    """Guards of prompts, answers and training data. Training data always fails closed."""

    enabled: bool = Field(True, description="judge texts at all; personal data is redacted before storage either way")
    prompt: OnError = Field("closed", description="what happens to prompts when a guard fails: refused or let through")
    answer: OnError = Field("closed", description="what happens to answers when a guard fails: refused or let through")
    block: tuple[str, ...] = Field(BLOCKED, description="categories that block a text; other findings flag it")
    phone_regions: tuple[str, ...] = Field(
        ("US", "GB", "FR"), description="countries whose phone numbers need no word such as 'call' beside them"
    )
    max_chars: int = Field(1 << 20, ge=1, le=1 << 26, description="longer texts are not judged: the guard has failed")
    window_chars: int = Field(
        512, ge=64, le=1 << 16, description="most characters of one sentence of a stream that are held back"
    )
    window_s: float = Field(1.0, gt=0, le=60, description="seconds until held characters of a stream are judged again")
    deadline_s: float = Field(2.0, gt=0, le=60, description="seconds for a guard model's answer; later it has failed")
    votes: int = Field(1, ge=1, le=16, description="guard models that must agree before one text is blocked by them")
    tenants: dict[str, TenantSafetySettings] = Field(default_factory=dict, description="exceptions by tenant")

    @field_validator("phone_regions")
    @classmethod
    def _are_countries(cls, regions: tuple[str, ...]) -> tuple[str, ...]:
        for region in regions:
            if not (len(region) == 2 and region.isascii() and region.isupper()):
                raise ValueError(f"expected countries in two capitals, such as US, got {region[:20]!a}")
        return regions
