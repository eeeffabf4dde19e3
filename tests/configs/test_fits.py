"""What fits together just so, and what is one token, answer or byte too much; and where relative paths start."""

from __future__ import annotations

from pathlib import Path

import pytest

from configs import names
from configs.carry_on import changes
from configs.load import ConfigError, load_config
from configs.paths import base_of
from configs.text import shown, unusable
from tests.conftest import REPOSITORY

DEMO = REPOSITORY / "configs" / "demo.toml"

#: Of the demo: an episode of 13 tokens, a prompt of 9 and an answer of 4.
FITS = [
    ("serving.max_model_len=13",),
    ("serving.max_model_len=15", "evaluation.max_tokens=6"),
    ("learner.sequence_length=26", "task.turns=2"),
    ("serving.max_model_len=26", "learner.sequence_length=26", "task.turns=2"),
    ("rollout.group_size=2",),
    ("learner.loss.mismatch={ truncation = 2.0, lagging = true }", "learner.mismatch_versions=2"),
    ('learner.loss.groups={ overlong = "penalize", overlong_buffer_tokens = 4 }',),
    ("rollout.group_size=1", "learner.loss.advantage.estimator=reinforce_pp", "learner.groups_per_step=2"),
    ("rollout.group_size=2", "learner.loss.advantage.estimator=reinforce_pp", "learner.groups_per_step=1"),
    ("model.create=none", "model.path=/m", "warm_start=none"),
    ("model.create=none", "model.path=/m", "model.family=qwen"),
    ("task.reward=delayed", "task.delayed={ window_s = 599.0 }"),
    ("warm_start=none", 'supervised={ data = "a.jsonl", steps = 1, batch_size = 1, learning_rate = 1e-3 }'),
]
TOO_MUCH = [
    (("serving.max_model_len=12",), "prompt and answer can take 13 tokens"),
    (("serving.max_model_len=14", "evaluation.max_tokens=6"), "prompt and answer can take 15 tokens"),
    (("serving.max_model_len=25", "learner.sequence_length=26", "task.turns=2"), "can take 26 tokens"),
    (("serving.max_model_len=12", "evaluation.max_tokens=1"), "prompt and answer can take 13 tokens"),
    (("learner.sequence_length=12",), "sequence_length is 12, but an episode can take 13 tokens"),
    (("rollout.group_size=1",), "compares an answer with the others of its group"),
    (
        ("learner.loss.mismatch={ truncation = 2.0, lagging = true }", "learner.mismatch_versions=1"),
        "mismatch_versions is 1 and rollout.max_staleness 2",
    ),
    (('learner.loss.groups={ overlong = "penalize", overlong_buffer_tokens = 5 }',), "overlong_buffer_tokens is 5"),
    (
        ("rollout.group_size=1", "learner.loss.advantage.estimator=reinforce_pp", "learner.groups_per_step=1"),
        "reinforce_pp compares the answers of a batch",
    ),
    (("warm_start=none",), "a model that the run creates knows nothing"),
    (("model.family=qwen",), "model.family is of the model in model.path"),
    (("model.create=none",), "give exactly one of model.path"),
    (("learner.publish_dtype=bfloat16",), "publish_dtype is bfloat16 and serving.dtype float32"),
    (
        ('supervised={ data = "a.jsonl", steps = 1, batch_size = 1, learning_rate = 1e-3 }',),
        "are both set: each makes the start model",
    ),
    (
        (
            "warm_start=none",
            'supervised={ data = "a.jsonl", steps = 1, batch_size = 1, learning_rate = 1e-3, system_column = "s" }',
        ),
        "supervised.system_column needs task.chat = true",
    ),
    (
        (
            "warm_start=none",
            'supervised={ data = "a", loss = "dpo", rejected_column = "answer", steps = 1, batch_size = 1, '
            "learning_rate = 1e-3 }",
        ),
        "answer_column and rejected_column are both 'answer'",
    ),
    (
        ("task.reward=delayed", "task.delayed={ window_s = 600.0 }"),
        "learner.max_wait_s is 600, but answers may wait 600 s for their rewards",
    ),
    (
        ("task.reward=delayed", "task.delayed={ window_s = 600.0 }", "learner.max_wait_s=601"),
        "rollout.max_wait_s is 600, but answers may wait 600 s for their rewards",
    ),
]


@pytest.mark.parametrize("overrides", FITS)
def test_what_fits_just_so_is_taken(overrides: tuple[str, ...]) -> None:
    load_config(DEMO, overrides)


@pytest.mark.parametrize(("overrides", "message"), TOO_MUCH)
def test_what_is_one_too_much_is_refused(overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(DEMO, overrides)


def test_paths_of_a_file_start_from_the_working_folder_but_in_a_run_s_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "elsewhere" / "config.toml"
    for run in ({"directory": "other"}, {"directory": ""}, {}, {"directory": "./"}):
        assert base_of({"run": run}, file) == tmp_path
    assert base_of({}, file) == base_of({"run": "."}, file) == tmp_path
    assert base_of({"run": {"directory": "."}}, file) == tmp_path / "elsewhere"
    assert base_of({"run": {"directory": "."}}, Path("elsewhere/config.toml")) == tmp_path / "elsewhere"


def test_a_change_is_told_with_both_values_and_what_stays_is_not() -> None:
    before = load_config(DEMO)
    now = load_config(DEMO, ["learner.steps=7", "task.score_timeout_s=3", "learner.hosts.index=0"])
    found = changes(before, now)
    assert {change.setting for change in found} == {"learner.steps", "task.score_timeout_s"}
    steps = next(change for change in found if change.setting == "learner.steps")
    assert str(steps) == f"learner.steps: {before.learner.steps} before, 7 now"
    assert changes(before, before) == ()
    longer = load_config(DEMO, ["learner.sequence_length=14"])
    assert [change.setting for change in changes(before, longer)] == ["learner.sequence_length"]
    with pytest.raises(ConfigError, match=r"longer trajectories may wait in the queue"):
        changes(longer, before)


def test_a_table_that_comes_or_goes_is_a_change_of_all_in_it() -> None:
    before = load_config(DEMO)
    with pytest.raises(ConfigError, match=r"the policy began with it") as caught:
        changes(before, load_config(DEMO, ["model.create=none", "model.path=/m", "warm_start=none"]))
    assert "the policy began as this model" in str(caught.value)


def test_values_that_no_setting_can_be_are_each_named() -> None:
    tree = {"a": {"b": "x\x07", "c": [1, float("nan")]}, "task": {"feedback": "a\nb", "name": "a\nb"}, "d\x1b": 1}
    found = list(unusable(tree))
    assert [line.partition(":")[0] for line in found] == ["a.b", "a.c.1", "task.name", r"the key 'd\x1b'"]
    assert list(unusable({"a": [1, 2.5, True, "text"], "b": {}})) == []


def test_what_is_shown_is_short() -> None:
    assert shown("x" * 120) == "x" * 120
    assert shown("x" * 121) == "x" * 120 + "..."
    assert shown(10**400) == "a number of 1329 bits"
    assert shown(7) == "7"


def test_names_that_are_as_near_are_all_given_but_no_more_than_three() -> None:
    assert names.nearest("learner.loss.kl.coeficient")[0] == "learner.loss.kl.coefficient"
    assert len(names.nearest("timeout_s")) <= 3
    assert names.nearest("xqzw") == []
    assert names.did_you_mean("xqzw") == ""
