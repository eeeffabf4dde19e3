"""Every setting is described from the schema: name, type, default, range and meaning."""

from __future__ import annotations

from typing import Literal

import pytest
from pydantic import BaseModel, Field

from configs import described
from configs.described import NOT_SET, REQUIRED, Setting, settings, tables
from configs.launch import ROLES
from configs.load import load_config
from configs.names import known_names
from configs.schema import Config
from tests.conftest import REPOSITORY
from tools.settings import markdown

BY_NAME = {setting.name: setting for setting in settings()}


def test_every_setting_and_table_says_what_it_means() -> None:
    assert [name for name, setting in BY_NAME.items() if not setting.meaning] == []
    assert [name for name, meaning in tables().items() if not meaning] == []


def test_times_and_sizes_name_their_unit() -> None:
    units = {"_s": "second", "_gib": "GiB", "_bytes": "bytes"}
    silent = [
        name
        for name, setting in BY_NAME.items()
        for ending, word in units.items()
        if name.endswith(ending) and word not in setting.meaning
    ]
    assert silent == []


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("learner.steps", ("integer", REQUIRED, "above 0")),
        ("learner.optimizer.learning_rate", ("number", "1e-06", "1e-10 to 1")),
        ("learner.optimizer.max_grad_norm", ("number", "1.0", "at least 1e-06, or inf")),
        ("learner.row_tokens", ("list of integers", "[]", "each above 1")),
        ("learner.loss.mismatch.band", ("list of 2 numbers", NOT_SET, "")),
        ("learner.loss.policy.dual_clip", ("number", NOT_SET, "above 1")),
        ("learner.compute_dtype", ('"float32" | "bfloat16"', '"float32"', "")),
        ("task.options", ("table", "{}", "")),
        ("task.chat", ("true or false", "false", "")),
        ("task.turns", ("integer", "1", "1 to 10000")),
        ("serving.host", ("text", '"127.0.0.1"', "not empty")),
        ("warm_start", ("table", NOT_SET, "")),
        ("warm_start.target_accuracy", ("number", REQUIRED, "above 0, below 1")),
    ],
)
def test_a_setting_is_described_as_the_schema_has_it(name: str, expected: tuple[str, str, str]) -> None:
    setting = BY_NAME[name]
    assert (setting.type, setting.default, setting.range) == expected


def test_there_is_a_description_of_all_that_a_run_can_hold() -> None:
    """Walks a loaded configuration, which knows nothing of the walk over the schema."""
    found: list[str] = []

    def walk(value: object, name: str) -> None:
        if isinstance(value, BaseModel):
            for key in type(value).model_fields:
                walk(getattr(value, key), f"{name}.{key}".lstrip("."))
        else:
            found.append(name)

    walk(load_config(REPOSITORY / "configs" / "demo.toml"), "")
    assert set(found) - set(BY_NAME) == set()
    absent = (
        *(f"launch.{role}" for role in ROLES),
        "task.curriculum.",
        "task.delayed.",
        "task.rewards.",
        "task.sources.",
        "safety.models.",
        "supervised.",
    )
    optional = {name for name in BY_NAME if name.startswith(absent)}
    named = {name for name in BY_NAME if ".NAME." in name}
    assert {name.partition(".NAME.")[0] for name in named} <= set(found)
    assert set(BY_NAME) - set(found) - optional - named == {"warm_start", "model.create"}
    assert set(known_names()) == set(BY_NAME) | set(tables())


class _Inner(BaseModel):
    size: int = Field(3, description="of it")


class _Outer(BaseModel):
    inner: _Inner = _Inner(size=7)
    kind: Literal["a"] | int = "a"


def test_a_table_that_is_given_whole_has_the_defaults_that_were_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(described, "Config", _Outer)
    assert settings() == [
        Setting("inner.size", "integer", "7", "", "of it"),
        Setting("kind", '"a" or integer', '"a"', "", ""),
    ]


def test_the_page_of_settings_is_that_of_the_schema() -> None:
    page = (REPOSITORY / "docs" / "settings.md").read_text()
    assert page == markdown() + "\n", "write it anew: python -m tools.settings --markdown > docs/settings.md"
    assert Config.model_fields.keys() <= {name.partition(".")[0] for name in BY_NAME}
