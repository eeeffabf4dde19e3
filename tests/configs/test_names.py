"""A wrong key is answered with the nearest settings of the whole schema."""

from __future__ import annotations

from pathlib import Path

import pytest

from configs.load import ConfigError, load_config, parse_config
from configs.names import did_you_mean, nearest
from tests.conftest import REPOSITORY

DEMO = REPOSITORY / "configs" / "demo.toml"


@pytest.mark.parametrize(
    ("wrong", "best"),
    [
        ("rollout.max_stalness", "rollout.max_staleness"),
        ("learner.learning_rate", "learner.optimizer.learning_rate"),
        ("max_staleness", "rollout.max_staleness"),
        ("learner.group_size", "rollout.group_size"),
        ("learner.optimiser.beta1", "learner.optimizer.beta1"),
        ("learner.kl.coefficient", "learner.loss.kl.coefficient"),
        ("Rollout.Max_Tokens", "rollout.max_tokens"),
        ("warmstart", "warm_start"),
        ("optimizer", "learner.optimizer"),
    ],
)
def test_the_nearest_name_is_a_spelling_or_the_key_in_another_table(wrong: str, best: str) -> None:
    assert nearest(wrong)[0] == best


@pytest.mark.parametrize("wrong", ["foo", "xyzzy.plugh", "learner.optimizer.qqqq", ""])
def test_another_word_altogether_has_no_neighbour(wrong: str) -> None:
    assert did_you_mean(wrong) == ""


def test_wrong_keys_of_a_file_and_of_the_command_line_are_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"learner\.group_size: unknown key; did you mean rollout\.group_size"):
        load_config(DEMO, ["learner.group_size=4"])
    path = tmp_path / "config.toml"
    path.write_text(DEMO.read_text().replace("[rollout]\n", "[rollout]\nmax_stalness = 1\n"))
    with pytest.raises(ConfigError, match=r"max_stalness: unknown key; did you mean rollout\.max_staleness\?"):
        load_config(path)


def test_a_key_of_great_length_is_answered_at_once() -> None:
    with pytest.raises(ConfigError, match="unknown key"):
        parse_config({"x" * 1_000_000: 1}, origin="test")
