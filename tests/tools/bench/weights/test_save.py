"""The benchmark of checkpoints: that it saves what a learner saves, and that its shares are of the right time."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import pytest

from tools.bench.__main__ import main
from tools.bench.learner.cases import Shape
from tools.bench.weights import save
from tools.bench.weights.save import Model, Window, rows_of, verdict

TINY = Model(Shape(2, 32, 2, 1, 16, 64, 48, tied=True), 4, 8, 16, 2)


def test_shares_are_of_the_window_and_slowdown_is_against_the_same_round() -> None:
    windows = {
        "none": [Window(0.0, 10.0, 0.5, 0.5, None), Window(0.0, 20.0, 0.5, 0.5, None)],
        "async": [Window(0.2, 11.0, 0.6, 0.5, 1.0), Window(0.2, 22.0, 0.6, 0.5, 3.0)],
        "sync": [Window(4.0, 16.0, 0.5, 0.5, 4.0), Window(4.0, 32.0, 0.5, 0.5, 4.0)],
    }
    none, asynchronous, sync = rows_of("m", windows, every=20, num_bytes=7)
    assert (none.blocked_share.median, none.slowdown.median, none.committed_s) == (0.0, 0.0, None)
    assert asynchronous.blocked_share.median == pytest.approx((0.2 / 11 + 0.2 / 22) / 2)
    assert asynchronous.slowdown.median == pytest.approx(0.1)
    assert asynchronous.committed_s is not None
    assert asynchronous.committed_s.median == 2.0
    assert sync.slowdown.median == pytest.approx(0.6)
    assert verdict(asynchronous).endswith("blocks 1.36% of the time; at most 1% is the aim: missed")


def test_every_side_makes_real_steps_and_saves_weights_and_moments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(save, "MODELS", {"tiny": TINY})
    record = tmp_path / "record.json"
    assert main(["save", "--every", "2", "--rounds", "2", "--directory", str(tmp_path), "--json", str(record)]) == 0
    rows = {row["side"]: row for row in json.loads(record.read_text())["results"]["rows"]}
    assert rows["none"]["blocked_s"]["median"] == 0 < rows["async"]["blocked_s"]["median"]
    assert rows["none"]["committed_s"] is None
    # A save that waits blocks until the commit, which is looked for twenty times a second.
    assert rows["sync"]["blocked_s"]["median"] >= rows["sync"]["committed_s"]["median"] - 0.1
    _, state, _ = save.prepare(TINY)
    num_parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    assert rows["async"]["num_bytes"] > 12 * num_parameters
    assert [path.name for path in tmp_path.iterdir()] == ["record.json"]
    assert "tiny: an asynchronous save every 2 steps blocks" in capsys.readouterr().out
