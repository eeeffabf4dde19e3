"""The study of learning per step in small: what variants change, exact lags, intervals, and records of whole runs."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats

from learner_jax.losses import group_advantages
from tests.conftest import REPOSITORY
from tests.support.new_models import created
from tools.study import records
from tools.study.learning import LearningRunner, cell_config
from tools.study.learning_grid import (
    VARIANTS,
    LearningCell,
    LearningSettings,
    learning_cells,
    sample_deviation,
)
from tools.study.learning_results import T95, difference, read_whole_runs, write_learning_report

__all__ = ["created"]

DEMO = REPOSITORY / "configs" / "demo.toml"
SMALL = LearningSettings(model="m", steps=4, evaluate_every=2, num_heldout=8)


def test_the_sample_deviation_scales_every_advantage_of_a_group_by_the_same_factor() -> None:
    rewards = np.array([1.0, 0.0, 0.0, 1.0, 1.0, 0.5, 0.0, 0.0])
    (population,) = group_advantages([rewards], "grpo", num_tokens=[np.ones(8)])
    found = sample_deviation(rewards)
    assert found.std(ddof=1) == pytest.approx(1.0, abs=1e-3)
    np.testing.assert_allclose(found, population * np.sqrt(7 / 8), rtol=1e-4)
    assert sample_deviation(np.array([0.5])).tolist() == [0.0]
    assert sample_deviation(np.ones(4)).tolist() == [0.0] * 4


def test_each_variant_changes_what_it_names_and_nothing_else() -> None:
    base = cell_config(DEMO, "m", LearningCell("synchronous", 3)).model_dump()
    assert base["run"]["seed"] == 3
    assert Path(base["model"]["path"]).name == "m"
    changed = {}
    for name in VARIANTS:
        other = cell_config(DEMO, "m", LearningCell(name, 3)).model_dump()
        changed[name] = {path for path, value in flat(other).items() if flat(base)[path] != value}
    clip = {"learner.loss.policy.clip_low", "learner.loss.policy.clip_high"}
    assert changed == {
        "synchronous": set(),
        "one version old": set(),
        "two versions old": set(),
        "two versions old, no clip": clip,
        "synchronous, half the rate": {"learner.optimizer.learning_rate"},
        "synchronous, sample deviation": {"learner.loss.advantage.estimator"},
    }


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found = {}
    for name, value in tree.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return found


@pytest.mark.soak
def test_a_cell_learns_from_answers_of_its_lag_and_repeats_bit_by_bit(created: Path, tmp_path: Path) -> None:
    """The runner raises when a batch is of another age."""
    demo = DEMO.read_text().replace("groups_per_step = 64", "groups_per_step = 2")
    config = tmp_path / "small.toml"
    config.write_text(demo.replace("group_size = 8", "group_size = 4"))
    settings = dataclasses.replace(SMALL, model=str(created))
    runner = LearningRunner(config, settings, "two versions old")
    cell = LearningCell("two versions old", 1)
    first, second = runner.run(cell), runner.run(cell)
    assert first["accuracy"] == second["accuracy"]
    assert first["by_step"] == second["by_step"]
    assert [step for step, _ in first["accuracy"]] == [0, 2, 4]
    assert all(len(values) == 4 for values in first["by_step"].values())
    assert first["by_step"]["age"] == [0.0, 1.0, 2.0, 2.0]


def test_quantiles_are_students() -> None:
    np.testing.assert_allclose(T95, [scipy.stats.t.ppf(0.975, df) for df in range(1, len(T95) + 1)], atol=1e-4)


def test_a_difference_is_paired_by_seed_and_has_students_interval() -> None:
    """Seeds differ by far more than the two ways do: only pairs show the difference."""
    less = {0: 0.1, 1: 0.5, 2: 0.9, 7: 0.3}
    more = {0: 0.2, 1: 0.61, 2: 0.99, 8: 0.4}
    found = difference(more, less)
    assert found is not None
    mean, half, pairs = found
    interval = scipy.stats.ttest_rel([0.2, 0.61, 0.99], [0.1, 0.5, 0.9]).confidence_interval(0.95)
    assert pairs == 3
    assert (mean - half, mean + half) == pytest.approx((interval.low, interval.high), abs=1e-5)
    assert difference({0: 1.0}, {0: 0.5}) is None


def fake_whole_run(path: Path, seed: int, **changes: Any) -> Path:
    """Weir's job is 10 points above TRL's trainer at every evaluation."""
    skills = [[step, 60.0, 0.3 + 0.1 * step + 0.01 * seed, 0.5] for step in (0, 2, 4)]
    better = [[step, t, accuracy + 0.1, score] for step, t, accuracy, score in skills]
    record = {
        "benchmark": "end_to_end",
        "settings": {"name": "demo", "overrides": ["run.seed=0", f"run.seed={seed}"]},
        "results": {"runs": {"weir": [{"skills": better}], "trl": [{"skills": skills}]}},
    } | changes
    path.write_text(json.dumps(record))
    return path


def fake_cells(out: Path, seeds: int) -> list[LearningCell]:
    """Every version of age gives 5 points."""
    wanted = learning_cells(seeds)
    for cell in wanted:
        gain = 0.05 * VARIANTS[cell.variant].lag + 0.01 * cell.seed
        record = {
            "accuracy": [(0, 0.3), (2, 0.5 + gain), (4, 0.7 + gain)],
            "by_step": {name: [0.1, 0.3] for name in ("reward", "clip_fraction", "kl", "entropy", "grad_norm")},
            "settings": dataclasses.asdict(SMALL),
        }
        records.keep(out, cell, record)
    return wanted


def test_the_page_has_curves_differences_and_what_the_loss_saw(tmp_path: Path) -> None:
    wanted = fake_cells(tmp_path, 2)
    runs = read_whole_runs([fake_whole_run(tmp_path / f"{seed}.json", seed) for seed in (0, 1)], SMALL)
    text = write_learning_report(tmp_path, wanted, SMALL, runs, tmp_path / "docs").read_text()
    assert "| synchronous | 2 | 50.5 | 70.5 | 60.5 (60.0 to 61.0) |" in text
    assert "| Weir's job | 2 | 60.5 | 80.5 | 70.5 (70.0 to 71.0) |" in text
    assert "| Weir's job - TRL's trainer | 2 | +10.0 ± 0.0 | +10.0 ± 0.0 |" in text
    assert "| two versions old - synchronous | 2 | +10.0 ± 0.0 | +10.0 ± 0.0 |" in text
    assert "| synchronous | 20.00% | 0.200 | 0.200 | 0.20 |" in text
    assert (tmp_path / "docs" / "learning_per_step.svg").stat().st_size > 1000


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"benchmark": "learner"}, "is no record of `tools.bench end_to_end"),
        ({"results": {"runs": {"trl": [{"skills": []}, {"skills": []}]}}}, "has 2 rounds, expected 1"),
        ({"results": {"runs": {"trl": [{"skills": [[2, 1.0, 0.5, 0.5]]}]}}}, "no evaluation of trl at steps [4]"),
    ],
)
def test_a_record_that_cannot_be_used_is_an_error(changes: dict[str, Any], told: str, tmp_path: Path) -> None:
    with pytest.raises(records.StudyError) as raised:
        read_whole_runs([fake_whole_run(tmp_path / "run.json", 0, **changes)], SMALL)
    assert told in str(raised.value)


def test_a_seed_of_a_whole_run_is_the_last_one_given(tmp_path: Path) -> None:
    curves = read_whole_runs([fake_whole_run(tmp_path / "run.json", 5)], SMALL)
    assert {name: list(by_seed) for name, by_seed in curves.items()} == {"Weir's job": [5], "TRL's trainer": [5]}
    assert curves["Weir's job"][5] == pytest.approx({0: 0.45, 2: 0.65, 4: 0.85})
