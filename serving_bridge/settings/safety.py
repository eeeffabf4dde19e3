"""The settings of the guards."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from learner_jax.contracts import Settings

OnError = Literal["closed", "open"]
GuardFormat = Literal["qwen3guard", "llama_guard_3", "llama_guard_4", "shieldgemma"]
Voting = Literal["count", "majority", "weighted"]
#: Categories that block a text unless the settings say otherwise; the others flag it.
BLOCKED = (
    "child_safety", "crime", "cyber", "drugs", "fraud", "harassment", "hate", "misinformation", "privacy",
    "prompt_injection", "self_harm", "sexual", "violence", "weapons",
)  # fmt: skip


class TenantSafetySettings(Settings):
    """What differs for one tenant; training data fails closed for all."""

    prompt: OnError | None = Field(None, description="what happens to prompts when a guard fails")
    answer: OnError | None = Field(None, description="what happens to answers when a guard fails")


class GuardModelSettings(Settings):
    """A guard model behind an endpoint of OpenAI's API."""

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]{1,60}$", description="in the audit log; unique")
    format: GuardFormat = Field(description="how it is asked, and what its answers mean")
    url: str = Field(pattern=r"^https?://[^\s@?#]+$", description="base address, up to /v1")
    model: str = Field(min_length=1, max_length=256, description="its name there")
    api_key_env: str = Field(
        "", pattern=r"^([A-Z_][A-Z0-9_]*)?$", description="environment variable with its key; empty: none is sent"
    )
    weight: float = Field(1.0, gt=0, le=1000, description="of its vote where safety.voting is weighted")


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
    models: tuple[GuardModelSettings, ...] = Field((), description="guard models, which are asked beside the rules")
    voting: Voting = Field(
        "count",
        description="which votes of guard models block: safety.votes of them, more than half, or half of the weight",
    )
    votes: int = Field(1, ge=1, le=16, description="guard models that must agree where safety.voting is count")
    tenants: dict[str, TenantSafetySettings] = Field(default_factory=dict, description="exceptions by tenant")

    @field_validator("models")
    @classmethod
    def _are_told_apart(cls, models: tuple[GuardModelSettings, ...]) -> tuple[GuardModelSettings, ...]:
        names = [model.name for model in models]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"two guard models have the name {min(twice)!r}")
        return models

    @field_validator("phone_regions")
    @classmethod
    def _are_countries(cls, regions: tuple[str, ...]) -> tuple[str, ...]:
        for region in regions:
            if not (len(region) == 2 and region.isascii() and region.isupper()):
                raise ValueError(f"expected countries in two capitals, such as US, got {region[:20]!a}")
        return regions
