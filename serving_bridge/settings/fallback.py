"""Settings of what users get when the model can't answer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, get_args

from pydantic import Field, model_validator

from learner_jax.contracts import Settings
from serving_bridge.settings.addresses import check_address

#: Why the model's answer is not told.
Case = Literal["unavailable", "guard_failed", "low_confidence", "unknown"]
CASES: tuple[Case, ...] = get_args(Case)
#: What is told in its place.
Policy = Literal["retry", "previous_version", "retrieve", "hand_over", "abstain"]
POLICIES: tuple[Policy, ...] = get_args(Policy)

_POLICIES = "tried in order; empty: the user gets the error, or the answer as it is"


class TenantFallbackSettings(Settings):
    """What differs for one tenant."""

    unavailable: tuple[Policy, ...] | None = Field(None, description="policies when no replica answers")
    guard_failed: tuple[Policy, ...] | None = Field(None, description="policies when a guard fails")
    low_confidence: tuple[Policy, ...] | None = Field(None, description="policies for answers that are not sure enough")
    unknown: tuple[Policy, ...] | None = Field(None, description="policies for answers of nothing but not knowing")
    abstain_text: str | None = Field(None, min_length=1, max_length=4000, description="text of abstain")
    corpora: tuple[str, ...] = Field((), description="corpora of this tenant's own, which no other tenant searches")


class FallbackSettings(Settings):
    """What users get when the model can't answer: policies by case. Without any, nothing changes."""

    unavailable: tuple[Policy, ...] = Field((), description=f"policies when no replica answers, {_POLICIES}")
    guard_failed: tuple[Policy, ...] = Field((), description=f"policies when a guard fails, {_POLICIES}")
    low_confidence: tuple[Policy, ...] = Field((), description=f"policies below fallback.min_confidence, {_POLICIES}")
    unknown: tuple[Policy, ...] = Field(
        (), description=f"policies for answers that are one of fallback.unknown_phrases, {_POLICIES}"
    )
    calibration: str = Field(
        "", description="file of `tools.confidence fit`; answers then tell how probably they are right"
    )
    min_confidence: float = Field(
        0.0, ge=0, le=1, description="probability of being right below which low_confidence applies; 0: never"
    )
    samples: int = Field(
        4, ge=1, le=16, description="further answers that are sampled where the calibration's score is agreement"
    )
    hold_streams: bool = Field(
        False, description="hold a stream's text until all of it was judged; else low confidence is told at its end"
    )
    unknown_phrases: tuple[str, ...] = Field(
        ("I don't know", "I do not know"), description="an answer of nothing else says that the model does not know"
    )
    retry_wait_s: float = Field(1.0, ge=0, le=600, description="seconds until a retry when no replica answers")
    previous_run: str = Field(
        "", description="directory of a run whose replicas serve an older version of the model, for previous_version"
    )
    corpora: dict[str, str] = Field(
        default_factory=dict,
        description="documents for retrieve, by name: JSONL of {id, title, text}, or a folder of text files",
    )
    embeddings: str = Field("", description="folder of static embeddings for retrieve; empty: BM25 alone")
    top_k: int = Field(3, ge=1, le=20, description="documents that retrieve shows")
    retrieve_text: str = Field(
        "The model can't answer now. These documents may help:",
        max_length=4000,
        description="what stands before the documents where no model can read them",
    )
    abstain_text: str = Field("I can't answer this.", min_length=1, max_length=4000, description="text of abstain")
    webhook: str = Field("", description="address that hand_over posts the conversation to; https, or a private host")
    webhook_secret_env: str = Field(
        "", pattern=r"^([A-Z_][A-Z0-9_]*)?$", description="environment variable with the key that signs what is posted"
    )
    webhook_timeout_s: float = Field(5.0, gt=0, le=600, description="seconds for the webhook's answer")
    hand_over_text: str = Field(
        "Someone will look into this and come back to you.",
        min_length=1,
        max_length=4000,
        description="what is told where the webhook takes a conversation over without an answer",
    )
    sample_share: float = Field(
        0.01,
        ge=0,
        le=1,
        description="share of fallbacks that are marked for a look by people; with text where consented",
    )
    tenants: dict[str, TenantFallbackSettings] = Field(default_factory=dict, description="exceptions by tenant")

    def policies(self, case: Case, tenant: str = "") -> tuple[Policy, ...]:
        """The policies of a case for a tenant, in order."""
        own = getattr(self.tenants.get(tenant), case, None)
        found: tuple[Policy, ...] = getattr(self, case) if own is None else own
        return found

    @property
    def is_on(self) -> bool:
        """Whether there is anything to do: a policy, or a confidence to tell."""
        return bool(self.calibration or self._used())

    def _used(self) -> set[Policy]:
        return {policy for _, policies in self._lists() for policy in policies}

    def _lists(self) -> Iterator[tuple[str, tuple[Policy, ...]]]:
        for case in CASES:
            yield f"fallback.{case}", getattr(self, case)
            for name, own in self.tenants.items():
                yield f"fallback.tenants.{name}.{case}", getattr(own, case) or ()

    @model_validator(mode="after")
    def _has_what_it_names(self) -> FallbackSettings:
        used = self._used()
        for policy, setting, value in (
            ("previous_version", "fallback.previous_run", self.previous_run),
            ("retrieve", "fallback.corpora", self.corpora),
            ("hand_over", "fallback.webhook", self.webhook),
        ):
            if policy in used and not value:
                raise ValueError(f"{policy} is among the policies, and {setting} is not set: set it")
        for name, policies in self._lists():
            if name.endswith("low_confidence") and policies and not (self.calibration and self.min_confidence):
                raise ValueError(f"{name} needs fallback.calibration and fallback.min_confidence above 0")
        for name, own in self.tenants.items():
            if missing := set(own.corpora) - set(self.corpora):
                raise ValueError(f"fallback.tenants.{name}.corpora has {min(missing)!r}, which fallback.corpora lacks")
        if self.webhook:
            check_address("fallback.webhook", self.webhook)
        return self
