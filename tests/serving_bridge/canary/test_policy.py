"""Policies: the default one holds, and one that can't is refused with one clear error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from serving_bridge.canary import MEASURES, CanaryPolicy, PolicyError, load_policy, parse_policy


def test_the_default_policy_is_as_documented_and_survives_its_file(tmp_path: Path) -> None:
    policy = CanaryPolicy()
    assert [step.name for step in policy.steps] == ["shadow", "1%", "5%", "25%", "50%", "100%"]
    assert CanaryPolicy.model_validate_json(policy.model_dump_json()) == policy
    file = tmp_path / "policy.toml"
    file.write_text('[canary]\ninterval_s = 30\n[[canary.metrics]]\nname = "error"\nmargin = 0.02\n')
    found = load_policy(file)
    assert (found.interval_s, [metric.name for metric in found.metrics], found.steps) == (30, ["error"], policy.steps)


LAST = {"share": 1.0, "proof": "all"}
ACME = {"tenants": ["acme"], "traffic": 0.1}


def test_whole_tenants_may_come_before_everybody() -> None:
    steps = [
        {"shadow": 0.1},
        {"share": 0.5, "tenant_share": 0.1},
        {"share": 1.0, "tenants": ["beta", "acme", "beta"], "tenant_share": 0.1, "traffic": 0.3},
        {"share": 1.0, "tenants": ["acme", "beta", "gamma"], "tenant_share": 0.3, "traffic": 0.5},
        LAST,
    ]
    policy = parse_policy({"steps": steps}, origin="p.toml")
    assert [step.name for step in policy.steps] == [
        "shadow",
        "50% of 10% of tenants",
        "100% of acme, beta and 10% of tenants",
        "100% of acme, beta and 1 more and 30% of tenants",
        "100%",
    ]
    assert [policy.share_of(step) for step in policy.steps] == [0.0, 0.5, 0.9, 0.9, 0.9], (
        "stable keeps holdout of theirs"
    )
    assert [step.traffic_share for step in policy.steps] == [1.0, 0.1, 0.3, 0.5, 1.0]


@pytest.mark.parametrize(
    ("tree", "match"),
    [
        ({"steps": [{"share": 0.5}]}, r"steps end at 50% \(50%\); expected the last at share = 1.0"),
        ({"steps": [{"share": 0.5}, {"share": 0.2}, LAST]}, "steps are 50%, 20%, 100%; expected shares that grow"),
        ({"steps": [{"share": 0.5, "shadow": 0.1}, LAST]}, "both share and shadow"),
        ({"steps": [{}, LAST]}, "neither share nor shadow"),
        ({"steps": [{"share": 1.0}]}, 'the last step has proof = "none"; expected "all"'),
        ({"steps": [{"share": 1.5}, LAST]}, r"steps\.0\.share"),
        ({"steps": [{"share": 0.97}, LAST]}, "a share above 90%, and stable keeps holdout = 0.1"),
        ({"metrics": [{"name": "errors", "margin": 0.1}]}, "metric errors is unknown; expected one of error, guard"),
        ({"metrics": [{"name": "score.x", "margin": 0.1}]}, "score.x: expected low and high"),
        ({"metrics": [{"name": "error", "margin": 0.1}] * 2}, "metric error stands there twice"),
        ({"metrics": [{"name": "error", "margin": 2.0}]}, "as wide as its whole range"),
        ({"metrics": [{"name": "error", "margin": 0.1, "low": 1.0}]}, "expected a low below high"),
        ({"metrics": []}, "metrics"),
        (
            {"interval_s": 10, "metrics": [{"name": "error", "margin": 0.1, "every_s": 60}]},
            "interval_s is 10, shorter than the 60 s of metric error",
        ),
        ({"max_hold_s": 60.0}, "max_hold_s is 60, and a step takes at least 3600 s"),
        ({"alpha": 0.9}, "alpha"),
        ({"intervall_s": 5}, "intervall_s"),
        ({"webhooks": ["file:///etc/passwd"]}, "expected http:// or https://"),
        ({"webhooks": ["https://me:secret@host/"]}, "no password in it"),
        ([], "policy"),
        ({"steps": [{"share": 0.1}, {"share": 1.0, **ACME}, LAST]}, "step 100% of acme takes the canary from tenants"),
        (
            {"steps": [{"share": 0.5, **ACME}, {"share": 0.5, "tenants": ["beta"], "traffic": 0.1}, LAST]},
            "step 50% of beta takes the canary from tenants",
        ),
        (
            {"steps": [{"share": 0.5, "tenant_share": 0.2}, {"share": 0.5, "tenant_share": 0.1}, LAST]},
            "takes the canary",
        ),
        (
            {"steps": [{"share": 0.9, **ACME}, {"share": 0.5}, LAST]},
            "steps are 90% of acme, 50%, 100%; expected shares",
        ),
        ({"steps": [{"share": 0.9, **ACME}, {"share": 0.9, **ACME}, LAST]}, "expected shares that grow"),
        ({"steps": [{"shadow": 0.9, **ACME}, LAST]}, "names tenants and has no share"),
        ({"steps": [{"share": 0.9, "tenants": ["acme"]}, LAST]}, "expected traffic, the share of all traffic"),
        ({"steps": [{"share": 0.9, "traffic": 0.1}, LAST]}, "traffic, which is for steps with tenants"),
        ({"steps": [{"share": 0.9, "tenants": ["a b"], "traffic": 0.1}, LAST]}, "tenants: a b; expected names"),
        (
            {"steps": [LAST | ACME]},
            r"steps end at 100% of acme \(100% of acme\); expected the last at share = 1.0 of all",
        ),
    ],
    ids=range(30),
)
def test_what_no_policy_can_be_is_one_clear_error(tree: Any, match: str) -> None:
    with pytest.raises(PolicyError, match=match):
        parse_policy(tree, origin="p.toml")


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"interval_s = 3", r"expected one table \[canary\], got interval_s"),
        (b"", "got nothing"),
        (b"[canary", "not valid TOML"),
        (b"\xff\xfe", "not valid TOML"),
        (b"#" * 300_000, "expected at most"),
    ],
    ids=["no table", "empty", "broken", "no text", "large"],
)
def test_files_that_are_none(tmp_path: Path, content: bytes, match: str) -> None:
    file = tmp_path / "p.toml"
    file.write_bytes(content)
    with pytest.raises(PolicyError, match=match):
        load_policy(file)
    with pytest.raises(PolicyError, match="can't be read"):
        load_policy(tmp_path / "other.toml")


def test_values_are_scaled_and_margins_of_relative_metrics_are_shares() -> None:
    ttft = MEASURES["ttft_s"]
    assert (ttft.scaled(0.001), ttft.scaled(0.02), ttft.scaled(100.0)) == (0.0, 0.0, 1.0)
    slower = ttft.scaled(0.55)
    as_it_is = ttft.scaled(0.5)
    assert slower is not None
    assert as_it_is is not None
    assert slower - as_it_is == pytest.approx(ttft.scaled_margin(0.1))
    assert ttft.told(slower - as_it_is) == pytest.approx(0.1)
    assert [ttft.scaled(value) for value in (float("nan"), float("inf"), "fast", None)] == [None] * 4
    assert MEASURES["error"].scaled(True) == 1.0
