"""A run that begins anew with other weights: once for each time that it is asked to, also past a crash."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from learner_jax.loop.anew import Anew, AnewError
from learner_jax.models import export_tensors
from learner_jax.training.engine import Engine
from serving_bridge.weights import read_version
from serving_bridge.weights.store import WeightStore
from tests.support.learner_runs import Crash, Records, assert_same_parameters, fill, run
from tests.support.whole_run import engine, params

__all__ = ["engine", "params"]  # fixtures


class Asked:
    """What somebody asks for, by number; fetched as a file that holds the number."""

    def __init__(self, folder: Path, load: Callable[[Path], Any] = lambda folder: folder) -> None:
        self.number: int | None = None
        self.fetched: list[int] = []
        self._folder, self._load = folder / "anew", load

    def __call__(self) -> Anew:
        """As a new life has it."""
        return Anew(self._folder, asked=lambda: self.number, fetch=self._fetch, load=self._load)

    def _fetch(self, number: int, folder: Path) -> None:
        folder.mkdir()
        self.fetched.append(number)
        (folder / "weights").write_text(str(number))


def test_each_time_is_done_once_at_its_step_and_again_by_a_life_that_lost_it(tmp_path: Path) -> None:
    asked = Asked(tmp_path)
    assert asked().due(0) is None
    assert not (tmp_path / "anew").exists()
    asked.number = 3
    life = asked()
    assert life.is_asked()
    assert life.due(7) == 3
    assert not life.is_asked()
    assert (life.params(3) / "weights").read_text() == "3"
    assert [asked().due(step) for step in (7, 5, 8)] == [3, 3, None], "what was saved after it holds it"
    asked.number = None
    assert asked().due(7) == 3, "also where nobody asks any more"
    asked.number = 2
    assert not asked().is_asked(), "an older one than what was done"
    asked.number = 4
    assert asked().due(9) == 4
    assert asked.fetched == [3, 4]


def test_what_is_remembered_and_damaged_is_an_error(tmp_path: Path) -> None:
    asked = Asked(tmp_path)
    asked.number = 1
    asked().due(2)
    (tmp_path / "anew" / "newest.json").write_text('{"number"')
    with pytest.raises(AnewError, match="expected number and at_step"):
        asked().due(2)


def test_a_fetch_that_was_cut_short_is_made_again(tmp_path: Path) -> None:
    asked = Asked(tmp_path)
    asked.number = 1
    (tmp_path / "anew" / "1.part").mkdir(parents=True)
    (tmp_path / "anew" / "1.part" / "half").touch()
    assert asked().due(0) == 1
    assert [path.name for path in asked().params(1).iterdir()] == ["weights"]


def _last_version(folder: Path, version: int) -> dict[str, np.ndarray]:
    tensors = read_version(WeightStore(folder / "weights", "test"), version)
    return {name: one.words.view(np.float32).reshape(one.shape) for name, one in tensors.items()}


def test_a_run_goes_on_with_other_weights_and_a_crash_changes_nothing(
    engine: Engine, params: Any, tmp_path: Path
) -> None:
    other = jax.tree.map(lambda leaf: leaf * 0.5, params)
    runs = []
    for name in ("whole", "broken"):
        folder = tmp_path / name
        fill(folder, 12)
        asked, log = Asked(folder, lambda _: other), Records()

        def hold(asked: Asked = asked, log: Records = log) -> str | None:
            if len(log.steps()) == 3:
                asked.number = 5  # asked for while it waits before step 4
            return None

        outcome, _ = run(engine, params, folder, log=log, hold=hold, anew=asked())
        assert (outcome.reason, outcome.position.completed_steps) == ("anew", 3)
        if name == "broken":
            with pytest.raises(Crash):
                run(engine, params, folder, log=Records(lambda record: record["event"] == "anew"), anew=asked())
            crash = Records(lambda record: record["event"] == "step" and record["step"] == 4)
            with pytest.raises(Crash):
                run(engine, params, folder, log=crash, anew=asked())
        outcome, log = run(engine, params, folder, anew=asked())
        assert outcome.reason == "finished"
        assert [record["step"] for record in log.steps()][-1] == 6
        runs.append(asked)
        if name == "whole":
            assert [(record["number"], record["step"]) for record in log if record["event"] == "anew"] == [(5, 3)]
            version = next(record["version"] for record in log if record["event"] == "published")
            expected = dict(export_tensors(other, engine.model_config, engine.settings.publish_dtype))
            published = _last_version(folder, version)
            assert set(published) == set(expected)
            for tensor, values in expected.items():
                np.testing.assert_array_equal(published[tensor], np.asarray(values), err_msg=tensor)
    assert [one.fetched for one in runs] == [[5], [5]]
    assert_same_parameters(tmp_path / "broken", tmp_path / "whole")
