"""What `tools.learner` builds from a configuration before it trains: the reference of the KL."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from configs.load import load_config
from learner_jax.checkpoints.checkpoints import CheckpointError
from learner_jax.contracts.model import ModelConfig, read_model_config
from learner_jax.conversion.convert import from_hf
from learner_jax.loop.host_facts import flat
from learner_jax.models.hf_folder import load_parameters
from learner_jax.settings import SupervisedSettings
from learner_jax.settings.learner import LearnerSettings
from learner_jax.training import objective
from learner_jax.training.engine import Engine
from tests.conftest import REPOSITORY
from tools import learner


def reference_of(path: Path | str, model_dir: Path) -> Any:
    config = load_config(REPOSITORY / "configs" / "demo.toml", [f"learner.loss.kl.reference={path}"])
    model_config: ModelConfig = read_model_config(model_dir)
    settings = LearnerSettings(steps=1, groups_per_step=1, sequence_length=8, microbatch_rows=1)
    engine = Engine(settings, model_config, objective=objective.supervised, temperature=1.0, devices=jax.devices()[:1])
    return learner.kl_reference(config, engine, model_config)


@pytest.mark.parametrize("form", ["hugging face folder", "checkpoint", "folder of checkpoints"])
def test_the_reference_comes_from_a_folder_or_a_checkpoint(form: str, stories_model: Path, tmp_path: Path) -> None:
    from_hf(stories_model, out=tmp_path / "checkpoints")
    path = {
        "hugging face folder": stories_model,
        "checkpoint": tmp_path / "checkpoints" / "0",
        "folder of checkpoints": tmp_path / "checkpoints",
    }[form]
    expected = load_parameters(stories_model, read_model_config(stories_model))
    got = reference_of(path, stories_model)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(a, b)


def test_without_a_path_the_start_model_is_the_reference(stories_model: Path) -> None:
    assert reference_of("", stories_model) is None


def test_a_missing_reference_is_named(stories_model: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere does not exist"):
        reference_of(tmp_path / "nowhere", stories_model)


def test_hosts_compare_all_settings_but_where_each_finds_its_folders() -> None:
    """A setting that was renamed must not stay in the list of exceptions under its old name."""
    config = load_config(REPOSITORY / "configs" / "demo.toml", []).model_dump(mode="json")
    config["supervised"] = SupervisedSettings(data="f.jsonl", steps=1, batch_size=1, learning_rate=1e-4).model_dump(
        mode="json"
    )  # the demo has none
    every = flat(config)
    assert set(learner._OF_EACH_HOST) <= every.keys()
    compared = flat(config, without=learner._OF_EACH_HOST)
    assert compared.keys() == every.keys() - set(learner._OF_EACH_HOST)
    assert {"learner.hosts.count", "learner.optimizer.learning_rate", "run.seed"} <= compared.keys()
