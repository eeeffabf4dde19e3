"""Conversion between Orbax checkpoints and Hugging Face folders, through the command that people type."""

from __future__ import annotations

import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from learner_jax.checkpoint import Checkpoints
from learner_jax.config import LearnerSettings, OptimizerSettings
from learner_jax.engine import Engine
from learner_jax.hf_io import load_parameters
from learner_jax.hf_names import read_model_config
from learner_jax.objective import supervised
from tools import convert


def convert_command(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> None:
    monkeypatch.setattr(sys, "argv", ["tools.convert", *map(str, arguments)])
    convert.main()


def test_a_round_trip_gives_the_same_bytes(
    stories_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert_command(monkeypatch, "from-hf", "--model", stories_model, "--out", tmp_path / "checkpoint")
    folder = tmp_path / "hf"
    convert_command(
        monkeypatch, "to-hf", "--checkpoint", tmp_path / "checkpoint", "--model", stories_model, "--out", folder
    )
    original, returned = load_file(stories_model / "model.safetensors"), load_file(folder / "model.safetensors")
    assert returned.keys() == original.keys()
    for name, tensor in original.items():
        assert returned[name].tobytes() == tensor.tobytes(), name
    assert (folder / "tokenizer.json").read_bytes() == (stories_model / "tokenizer.json").read_bytes()


@pytest.mark.parametrize("warmup_steps", [0, 10])
def test_a_run_can_resume_from_a_converted_folder(stories_model: Path, tmp_path: Path, warmup_steps: int) -> None:
    convert.from_hf(stories_model, out=tmp_path / "checkpoint")
    config = read_model_config(stories_model)
    settings = LearnerSettings(
        steps=1,
        groups_per_step=1,
        sequence_length=8,
        microbatch_rows=1,
        optimizer=OptimizerSettings(warmup_steps=warmup_steps),
    )
    engine = Engine(settings, config, objective=supervised, temperature=1.0, devices=jax.devices()[:1])
    params = load_parameters(stories_model, config)
    zeros = jax.tree.map(np.zeros_like, params)
    checkpoints = Checkpoints(tmp_path / "checkpoint", keep=1)
    state, position, _ = checkpoints.restore(engine.init_state(zeros, seed=0))
    checkpoints.close()
    assert position.completed_steps == 0
    for restored, expected in zip(jax.tree.leaves(state.params), jax.tree.leaves(params), strict=True):
        np.testing.assert_array_equal(restored, expected)


def test_nothing_is_written_over(
    stories_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine").write_text("precious")
    with pytest.raises(SystemExit):
        convert_command(monkeypatch, "from-hf", "--model", stories_model, "--out", tmp_path)
    assert "is not empty; name a folder that does not exist yet" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
