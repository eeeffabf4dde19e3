"""[fallback] from a configuration: what is built of it, and what is told where it names what is not there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from configs.errors import ConfigError
from configs.load import load_config
from learner_jax.runtime import WeirError
from serving_bridge.confidence import Calibration, write_calibration
from serving_bridge.settings import FallbackSettings
from tools.assembly import fallback_of, run_paths


def config_of(folder: Path, *overrides: str):  # type: ignore[no-untyped-def]
    return load_config("demo", [f"run.directory={folder}", *overrides])


def test_nothing_is_built_where_nothing_is_set(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    with fallback_of(config, run_paths(config), "gateway-0") as found:
        assert found is None
    assert not (tmp_path / "fallback").exists()


def test_everything_is_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "docs.jsonl").write_text(json.dumps({"id": "a", "text": "A river."}) + "\n")
    write_calibration(tmp_path / "c.json", Calibration("mean", "platt", 50, slope=1.0))
    older = tmp_path / "older"
    (tmp_path / "older").mkdir()
    own = (Path(__file__).parents[3] / "configs" / "demo.toml").read_text()
    (older / "config.toml").write_text(own)
    monkeypatch.setenv("HOOK_KEY", "k" * 16)
    config = config_of(
        tmp_path / "run",
        'fallback.unavailable=["previous_version", "retrieve", "hand_over", "abstain"]',
        'fallback.low_confidence=["retry"]',
        f"fallback.calibration={tmp_path / 'c.json'}",
        "fallback.min_confidence=0.5",
        f"fallback.corpora={{ docs = '{tmp_path / 'docs.jsonl'}' }}",
        "fallback.webhook=https://people.example/take",
        "fallback.webhook_secret_env=HOOK_KEY",
        f"fallback.previous_run={older}",
    )
    (tmp_path / "run").mkdir()
    with fallback_of(config, run_paths(config), "gateway-0") as found:
        assert found is not None
        assert found.calibration is not None
        assert found.calibration.slope == 1.0
        assert found.library is not None
        assert found.library.corpora_of("anyone") == ("docs",)
        assert found.webhook is not None
        assert found.previous is not None
    assert (tmp_path / "run" / "fallback" / "gateway-0.jsonl").exists()


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["fallback.calibration=/none/c.json"], "tools.confidence fit"),
        (['fallback.unavailable=["retrieve"]', "fallback.corpora={ d = '/none' }"], "fallback.corpora.d"),
        (['fallback.unavailable=["previous_version"]', "fallback.previous_run=/none"], "no config.toml"),
        (
            [
                'fallback.unavailable=["hand_over"]',
                "fallback.webhook=https://people.example/take",
                "fallback.webhook_secret_env=NOT_THERE",
            ],
            "holds no key",
        ),
    ],
)
def test_what_is_not_there_is_named(overrides: list[str], told: str, tmp_path: Path) -> None:
    config = config_of(tmp_path, *overrides)
    with pytest.raises(WeirError, match=told), fallback_of(config, run_paths(config), "gateway-0"):
        pass


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"unavailable": ("retrieve",)}, "fallback.corpora"),
        ({"unknown": ("hand_over",)}, "fallback.webhook"),
        ({"unavailable": ("previous_version",)}, "fallback.previous_run"),
        ({"low_confidence": ("abstain",)}, "min_confidence"),
        ({"tenants": {"acme": {"low_confidence": ("abstain",)}}}, r"tenants\.acme\.low_confidence"),
        ({"tenants": {"acme": {"corpora": ("x",)}}}, "'x'"),
        ({"webhook": "ftp://host/x"}, "https://host/path"),
        ({"webhook": "https://user:pass@host/x"}, "without a password"),
        ({"unavailable": ("shrug",)}, "retry"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, object], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        FallbackSettings(**settings)  # type: ignore[arg-type]


def test_a_tenant_has_its_own_policies() -> None:
    found = FallbackSettings(unavailable=("abstain",), tenants={"acme": {"unavailable": ()}})  # type: ignore[dict-item]
    assert found.policies("unavailable", "acme") == ()
    assert found.policies("unavailable", "other") == ("abstain",)
    assert found.policies("unknown", "acme") == ()


def test_unknown_keys_fail(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="fallback"):
        config_of(tmp_path, "fallback.policy=abstain")
