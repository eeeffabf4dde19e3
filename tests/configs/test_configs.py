"""Every shipped config loads and says how to run it; bad keys and values are named with what was expected."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from configs.load import ConfigError, load_config, load_past_config, parse_config, save_config
from learner_jax.settings.learner import LearnerSettings, LossSettings
from tests.conftest import REPOSITORY

CONFIGS = sorted((REPOSITORY / "configs").glob("*.toml"))
DEMO = REPOSITORY / "configs" / "demo.toml"


def test_there_are_configs_for_each_purpose() -> None:
    assert {path.stem for path in CONFIGS} >= {"demo", "stories", "smollm2", "gsm8k_one_gpu", "pod_tpu", "pod_gpu"}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_loads_and_opens_with_its_story(path: Path, tmp_path: Path) -> None:
    config = load_config(path)
    header = re.match(r"(#.*\n)+", path.read_text())
    assert header is not None
    for word in ("command", "hardware", "expected", "run on"):
        assert re.search(rf"^#   {word} ", header[0], re.MULTILINE), f"{path.name} does not say its {word}"
    save_config(config, tmp_path / "saved.toml")
    assert load_config(tmp_path / "saved.toml") == config


def test_overrides_take_toml_values_and_plain_strings() -> None:
    config = load_config(
        DEMO,
        ["rollout.max_staleness=0", "run.name=other", "learner.optimizer.learning_rate=1e-5", 'run.directory="x y"'],
    )
    assert config.rollout.max_staleness == 0
    assert config.run.name == "other"
    assert config.learner.optimizer.learning_rate == 1e-5
    assert config.run.directory == str(Path.cwd() / "x y")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "rollout.max_stalenes=1",
            r"rollout\.max_stalenes: unknown key; did you mean rollout\.max_staleness\? Known here: group_size",
        ),
        ("rolout.max_staleness=1", r"rolout: unknown key; did you mean rollout\? Known here: run, model, task"),
        ("learner.optimizer.lr=1", r"learner\.optimizer\.lr: unknown key; known here: learning_rate"),
        ("rollout.max_staleness=-1", r"rollout\.max_staleness: .*greater than or equal to 0, got -1"),
        ("rollout.group_size=many", r"rollout\.group_size: .*integer.*got 'many'"),
        ("learner.optimizer.learning_rate=0", r"learning_rate: .*greater than or equal to 0\.0000000001, got 0"),
        ("learner.row_tokens=[8, 12]", r"row_tokens is \[8, 12\], but sequence_length is 13: the longest row"),
        ("learner.remat=some", r"learner\.remat: .*'none', 'matmuls' or 'full', got 'some'"),
        ("learner.hosts={ count = 5, index = 0 }", r"microbatch_rows is 24, .* does not divide by hosts\.count 5"),
        ("learner.minibatches=3", r"minibatches is 3 and does not divide groups_per_step"),
        ("learner.sequence_length=4", r"sequence_length is 4, but an episode can take 13 tokens"),
        ("task.turns=2", r"sequence_length is 13, but an episode can take 26 tokens .* task\.turns"),
        ("serving.max_model_len=8", r"max_model_len is 8.*cut answers silently"),
        ("learner.publish_dtype=bfloat16", r"publish_dtype is bfloat16 and serving\.dtype float32"),
        ("model.path=/x", r"exactly one of model\.path"),
        ("learner.loss.kl.coefficient=0.0", None),
        ("nonsense", r"expected section\.key=value"),
        ("run.name.x=1", r"'name' is a value, not a table"),
    ],
)
def test_bad_settings_are_named(override: str, message: str | None) -> None:
    if message is None:
        assert load_config(DEMO, [override]).learner.loss.kl.coefficient == 0
        return
    with pytest.raises(ConfigError, match=message):
        load_config(DEMO, [override])


def test_kl_budget_without_a_reference_is_refused() -> None:
    with pytest.raises(ConfigError, match="budget needs the reference"):
        load_config(DEMO, ["learner.loss.kl.coefficient=0.0", "learner.loss.kl.budget=1.0"])


def test_loss_settings_are_checked_against_the_run() -> None:
    with pytest.raises(ConfigError, match="set mismatch_versions to rollout.max_staleness"):
        load_config(DEMO, ["learner.mismatch_versions=0", "learner.loss.mismatch={ truncation = 2.0, lagging = true }"])
    alone = ["rollout.group_size=1", "learner.groups_per_step=256", "learner.loss.advantage.estimator=rloo"]
    with pytest.raises(ConfigError, match="rloo compares an answer with the others of its group"):
        load_config(DEMO, alone)


def test_the_recipes_of_the_documentation_are_valid_losses() -> None:
    text = (DEMO.parent.parent / "docs" / "losses.md").read_text()
    defaults, recipes = (block.partition("```")[0] for block in text.split("```toml\n")[1:])
    assert LossSettings.model_validate(tomllib.loads(defaults)["learner"]["loss"]) == LossSettings()
    paragraphs = recipes.split("\n\n")
    assert len(paragraphs) == 6
    for paragraph in paragraphs:
        assert LossSettings.model_validate(tomllib.loads(paragraph)) != LossSettings()


def test_missing_and_broken_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        load_config(tmp_path / "none.toml")
    broken = tmp_path / "broken.toml"
    broken.write_text("[run\n")
    with pytest.raises(ConfigError, match="not valid TOML"):
        load_config(broken)
    with pytest.raises(ConfigError, match=r"learner: Field required.*`weir new my-run` writes one"):
        parse_config({"run": {"name": "x"}}, origin="here")


def test_none_takes_out_a_table_or_a_value_that_need_not_be_set() -> None:
    told = ["warm_start=none", "model.create=none", "model.path=/m", "learner.optimizer = none"]
    config = load_config(DEMO, told)
    assert (config.warm_start, config.model.create, config.model.path) == (None, None, "/m")
    assert config.learner.optimizer == LearnerSettings.model_fields["optimizer"].default
    assert load_config(DEMO, ["evaluation.max_tokens=3", "evaluation.max_tokens=none"]).evaluation.max_tokens is None
    assert load_config(DEMO, ["store.max_age_s=none"]) == load_config(DEMO)  # not there, and its table neither
    again = load_config(DEMO, ["learner.loss.kl=none", "learner.loss.kl.coefficient=0.5"]).learner.loss.kl
    assert again.coefficient == 0.5


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("run=none", "run: Field required"),
        ("warm_start=none", r"add a \[warm_start\] table"),
        ("learner.steps=none", r"learner\.steps: .*integer, got 'none'"),
        ("run.name.x=none", "override of run.name.x: 'name' is a value, not a table"),
    ],
)
def test_what_a_run_can_not_do_without_stays(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(DEMO, [override])


def test_none_is_text_to_a_setting_of_text() -> None:
    assert load_config(DEMO, ["run.name=none"]).run.name == "none"
    assert load_config(DEMO, ["learner.remat=none"]).learner.remat == "none"


def test_a_past_run_is_read_without_the_keys_that_are_gone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "config.toml"
    save_config(load_config(DEMO), path)
    whole = path.read_text()
    path.write_text(whole.replace("[serving]", '[serving]\nextra_args = ["--x"]') + "\n[gone]\nkey = 1\n")
    with pytest.raises(ConfigError, match=r"serving\.extra_args: unknown key"):
        load_config(path)
    assert load_past_config(path) == load_config(DEMO)
    (said,) = capsys.readouterr().err.splitlines()
    assert said == f"warning: {path}: left out what this build does not know: serving.extra_args, gone"
    path.write_text(re.sub(r"^replicas = \d+$", "replicas = -1", whole, flags=re.MULTILINE))
    with pytest.raises(ConfigError, match=r"serving\.replicas"):
        load_past_config(path)
