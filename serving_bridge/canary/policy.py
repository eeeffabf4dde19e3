"""A policy: by which metrics and in which steps a candidate reaches all users."""

from __future__ import annotations

import tomllib
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from learner_jax.contracts import Settings, quoted
from learner_jax.runtime import PLAIN_NAME
from serving_bridge.canary.errors import PolicyError
from serving_bridge.canary.metrics import Measure, Worse, measure_of
from serving_bridge.registry import MAX_TENANT, Cohort, cohort_of

Proof = Literal["none", "goals", "all"]
AfterRollback = Literal["hold", "anew"]
_MAX_BYTES = 2**18


class MetricPolicy(Settings):
    """One metric, and how much worse the canary may be."""

    name: str = Field(max_length=60, description="a metric of docs/canary.md, or score.NAME")
    margin: float = Field(
        gt=0, le=1e6, description="how much worse than stable is too much; a share of it where the metric is relative"
    )
    role: Literal["guardrail", "goal"] = Field(
        "guardrail", description="a guardrail can only stop a rollout; a goal must be shown to hold before it goes on"
    )
    min_samples: int = Field(0, ge=0, description="values of the canary that a step needs at least")
    coverage: float = Field(
        0.5,
        ge=0,
        le=1,
        description="share of answers that must have a value; below it the metric counts as missing. With 0 it may be "
        "absent: it can stop a rollout, and nothing waits for it",
    )
    every_s: float = Field(0.0, ge=0, le=86_400, description="how often its source gives values; 0: with each answer")
    per_tenant: bool = Field(True, description="also compare within each tenant")
    worse: Worse | None = Field(None, description="another direction than the metric's own: up, down or both")
    low: float | None = Field(None, description="smaller values count as this")
    high: float | None = Field(None, description="larger values count as this")

    @cached_property
    def measure(self) -> Measure:
        """Raises `PolicyError` for a metric that there is not."""
        return measure_of(self.name, self.low, self.high)

    @property
    def directions(self) -> tuple[int, ...]:
        """1 where more is worse, -1 where less is."""
        return {"up": (1,), "down": (-1,), "both": (1, -1)}[self.worse or self.measure.worse]

    @property
    def margin_scaled(self) -> float:
        return self.measure.scaled_margin(self.margin)


class StepPolicy(Settings):
    """One step of a rollout: its traffic, and what it needs before the next."""

    share: float = Field(
        0.0, ge=0, le=1, description="of the conversations that the canary answers; stable keeps holdout of them"
    )
    shadow: float = Field(0.0, ge=0, le=1, description="of stable's requests that the canary gets a copy of")
    min_samples: int = Field(500, ge=1, description="conversations that the canary needs at least")
    min_time_s: float = Field(600.0, ge=0, description="seconds that the step takes at least")
    proof: Proof = Field(
        "none", description="metrics that must be shown to be within their margin: none, goals (and no guardrail), all"
    )
    tenants: tuple[str, ...] = Field(
        (), max_length=1000, description="only these tenants, and those of tenant_share; share is then of theirs"
    )
    tenant_share: float = Field(
        0.0, ge=0, le=1, description="only so many of all tenants, by the hash of their names, and those of tenants"
    )
    traffic: float | None = Field(
        None,
        gt=0,
        le=1,
        description="share of all traffic that these tenants are, by which the canary gets replicas; tenants need it",
    )

    @field_validator("tenants")
    @classmethod
    def _are_in_order(cls, tenants: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(sorted(set(tenants)))

    @property
    def name(self) -> str:
        """As people read it: `shadow`, `5%`, `100% of acme`."""
        if not self.has_cohort:
            return _percent(self.share) if self.share else "shadow"
        more = f" and {len(self.tenants) - 2} more" if len(self.tenants) > 2 else ""
        shard = f"{_percent(self.tenant_share)} of tenants" if self.tenant_share else ""
        named = ", ".join(self.tenants[:2]) + more
        return f"{_percent(self.share)} of {' and '.join(filter(None, (named, shard)))}"

    @property
    def has_cohort(self) -> bool:
        """Whether the canary answers some tenants alone."""
        return bool(self.tenants or self.tenant_share)

    @property
    def traffic_share(self) -> float:
        """Share of all traffic that the step's tenants are."""
        if not self.has_cohort:
            return 1.0
        return self.tenant_share if self.traffic is None else self.traffic


def _percent(share: float) -> str:
    return f"{100 * share:.4g}%"


_STEPS = (
    StepPolicy(shadow=0.1, min_samples=300),
    StepPolicy(share=0.01, min_samples=200),
    StepPolicy(share=0.05, min_samples=500),
    StepPolicy(share=0.25, min_samples=2000, min_time_s=1800.0, proof="all"),
    StepPolicy(share=0.5, min_samples=4000, min_time_s=1800.0, proof="all"),
    StepPolicy(share=1.0, min_samples=4000, min_time_s=3600.0, proof="all"),
)
_METRICS = (
    MetricPolicy(name="error", margin=0.01),
    MetricPolicy(name="guard", margin=0.01),
    MetricPolicy(name="refusal", margin=0.02),
    MetricPolicy(name="ttft_s", margin=0.1),
    MetricPolicy(name="ttft_p95_s", margin=0.25),
    MetricPolicy(name="tokens_per_s", margin=0.1),
    MetricPolicy(name="length", margin=0.15),
    MetricPolicy(name="distinct", margin=0.03),
)


class CanaryPolicy(Settings):
    """When a candidate goes on, and when it goes back."""

    interval_s: float = Field(60.0, gt=0, le=3600, description="seconds between two looks")
    alpha: float = Field(
        0.01, gt=0, lt=0.5, description="chance that a candidate within all margins is ever rolled back for a metric"
    )
    beta: float = Field(
        0.01, gt=0, lt=0.5, description="chance for each step that a metric beyond its margin is taken for harmless"
    )
    max_hold_s: float = Field(
        86_400.0, gt=0, description="seconds in one step after which a rollout is inconclusive and goes back"
    )
    max_blind_looks: int = Field(3, ge=1, description="looks in a row without observations until they count as missing")
    max_dropped: float = Field(0.05, ge=0, le=1, description="share of observations that a gateway may drop")
    balance: float = Field(
        0.2, gt=0, le=1, description="how far the canary's share of conversations may fall short, as a part of it"
    )
    holdout: float = Field(
        0.1,
        gt=0,
        le=0.5,
        description="share of the conversations that stable keeps until the promotion: the last step compares with it",
    )
    after_rollback: AfterRollback = Field(
        "hold", description="training then: hold until tools.canary release; anew: goes on with the stable weights"
    )
    metrics: tuple[MetricPolicy, ...] = Field(_METRICS, min_length=1, max_length=50)
    steps: tuple[StepPolicy, ...] = Field(_STEPS, min_length=1, max_length=50)
    webhooks: tuple[str, ...] = Field((), max_length=10, description="addresses that are told of every change")

    @field_validator("webhooks")
    @classmethod
    def _are_addresses(cls, addresses: tuple[str, ...]) -> tuple[str, ...]:
        for address in addresses:
            if not address.startswith(("https://", "http://")) or "@" in address:
                raise ValueError(f"expected http:// or https:// and no password in it, got {quoted(address, 80)}")
        return addresses

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        _check_metrics(self)
        _check_steps(self.steps)
        if any(step.share > 1 - self.holdout for step in self.steps[:-1] if not step.has_cohort):
            raise ValueError(
                f"a step before the last has a share above {_percent(1 - self.holdout)}, and stable keeps holdout = "
                f"{self.holdout:g}; expected a smaller share or holdout"
            )
        if self.max_hold_s < max(step.min_time_s for step in self.steps) + self.interval_s:
            raise ValueError(
                f"max_hold_s is {self.max_hold_s:g}, and a step takes at least "
                f"{max(step.min_time_s for step in self.steps):g} s (min_time_s): expected more than that and an "
                f"interval_s"
            )
        return self

    def share_of(self, step: StepPolicy) -> float:
        """The share that the canary gets in a step."""
        return min(step.share, 1 - self.holdout)

    def cohort_of(self, step: StepPolicy, entry: int) -> Cohort | None:
        """The tenants whose conversations a step deals out and compares; None for everybody's."""
        return cohort_of(step.tenants, step.tenant_share, str(entry))


def _check_metrics(policy: CanaryPolicy) -> None:
    names = [metric.name for metric in policy.metrics]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"metric {quoted(twice, 60)} stands there twice; expected each once")
    for metric in policy.metrics:
        metric.measure  # noqa: B018 - raises for one that there is not
        if metric.every_s > policy.interval_s:
            raise ValueError(
                f"interval_s is {policy.interval_s:g}, shorter than the {metric.every_s:g} s of metric {metric.name} "
                f"(every_s): looks would find it missing; expected an interval of at least that"
            )
        if metric.margin_scaled >= 1:
            raise ValueError(
                f"metric {metric.name}: margin {metric.margin:g} is as wide as its whole range; expected a smaller one"
            )


def _check_steps(steps: tuple[StepPolicy, ...]) -> None:
    shares = [step.share for step in steps]
    told = ", ".join(step.name for step in steps)
    if shares[-1] != 1 or steps[-1].has_cohort:
        raise ValueError(f"steps end at {steps[-1].name} ({told}); expected the last at share = 1.0 of all tenants")
    for earlier, later in pairwise(steps):
        _check_grows(earlier, later, told)
    for step in steps:
        _check_cohort(step)
    if any(step.share > 0 and step.shadow > 0 for step in steps):
        raise ValueError("a step has both share and shadow; expected shadow only in steps without a share")
    if any(not step.share and not step.shadow for step in steps):
        raise ValueError("a step has neither share nor shadow: the canary would see nothing; expected one of them")
    if steps[-1].proof != "all":
        raise ValueError(f'the last step has proof = "{steps[-1].proof}"; expected "all": it decides for all users')


def _check_grows(earlier: StepPolicy, later: StepPolicy, told: str) -> None:
    """A conversation that the canary answers stays with it: no tenant's share falls from one step to the next."""
    wider = set(earlier.tenants) <= set(later.tenants) and earlier.tenant_share <= later.tenant_share
    if earlier.share and later.has_cohort and not (earlier.has_cohort and wider):
        raise ValueError(
            f"steps are {told}: step {later.name} takes the canary from tenants that had it before; expected a "
            f"step with tenants to name those of the step before, too, and to come before steps for everybody"
        )
    is_more = later.has_cohort != earlier.has_cohort or (later.tenants, later.tenant_share) != (
        earlier.tenants,
        earlier.tenant_share,
    )
    if later.share < earlier.share or (later.share == earlier.share > 0 and not is_more):
        raise ValueError(f"steps are {told}; expected shares that grow")


def _check_cohort(step: StepPolicy) -> None:
    bad = [name for name in step.tenants if not (PLAIN_NAME.fullmatch(name) and len(name) <= MAX_TENANT)]
    if bad:
        raise ValueError(f"tenants: {quoted(bad[0], 80)}; expected names of tenants, e.g. acme")
    if step.has_cohort and not step.share:
        raise ValueError(
            f"step {step.name} names tenants and has no share; expected a share of theirs, e.g. 1.0 for whole tenants"
        )
    if step.tenants and step.traffic is None:
        raise ValueError(
            f"step {step.name} names tenants: expected traffic, the share of all traffic that they are, e.g. 0.1"
        )
    if step.traffic is not None and not step.has_cohort:
        raise ValueError(f"step {step.name} has traffic, which is for steps with tenants; expected none")


def load_policy(path: Path) -> CanaryPolicy:
    """The policy of a TOML file: its table [canary].

    Raises:
      PolicyError: it can't be read, or says what no policy can.
    """
    try:
        content = path.read_bytes()
        if len(content) > _MAX_BYTES:
            raise PolicyError(f"{path} has {len(content)} bytes, expected at most {_MAX_BYTES}")
        tree = tomllib.loads(content.decode("utf-8-sig"))
    except OSError as error:
        raise PolicyError(f"policy {path} can't be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise PolicyError(f"policy {path} is not valid TOML: {quoted(str(error), 200)}") from None
    if set(tree) != {"canary"} or not isinstance(tree["canary"], dict):
        raise PolicyError(f"policy {path}: expected one table [canary], got {quoted(', '.join(tree) or 'nothing', 80)}")
    return parse_policy(tree["canary"], origin=str(path))


def parse_policy(tree: object, *, origin: str) -> CanaryPolicy:
    """A policy from plain values. Raises `PolicyError`; `origin` names it there."""
    try:
        return CanaryPolicy.model_validate(tree)
    except ValidationError as error:
        told = []
        for problem in error.errors()[:5]:
            key = ".".join(str(part) for part in problem["loc"]) or "policy"
            told.append(f"{quoted(key, 80)}: {quoted(problem['msg'].removeprefix('Value error, '), 400)}")
        raise PolicyError(f"policy {origin}: {'; '.join(told)}") from None
