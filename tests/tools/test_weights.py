"""`python -m tools.weights`: what it prints is what the store holds."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from learner_jax.contracts.weights import GoldenPrompt
from serving_bridge.routing.registry import ReplicaRegistry
from serving_bridge.settings.serving import StoreSettings
from serving_bridge.weights.publisher import Publisher
from serving_bridge.weights.reader import read_version
from serving_bridge.weights.shelf import MANIFEST_NAME, UPDATE_NAME
from serving_bridge.weights.store import WeightStore
from tools import weights as tool

GOLDEN = [GoldenPrompt(tokens=[1, 2], logprobs=[-0.5])]


@pytest.fixture
def store(tmp_path: Path) -> WeightStore:
    """Version 1 whole; 2 moves one element of `norm`, 3 four of `down`."""
    store = WeightStore(tmp_path / "weights", "someone's run")
    publisher = Publisher(store, StoreSettings(), log=lambda *_, **__: None)
    tensors = {"norm": np.ones(64, ml_dtypes.bfloat16), "down": np.ones((32, 64), ml_dtypes.bfloat16)}
    publisher.publish(tensors.items(), step=0, golden=GOLDEN)
    tensors["norm"] = tensors["norm"].copy()
    tensors["norm"][7] = 2
    publisher.publish(tensors.items(), step=5, golden=GOLDEN)
    tensors["down"] = tensors["down"].copy()
    tensors["down"][3, :4] = 3
    publisher.publish(tensors.items(), step=6, golden=GOLDEN)
    publisher.close()
    return store


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["weights", *map(str, arguments)])
        tool.main()
        return capsys.readouterr().out

    return call


def test_list(store: WeightStore, run: Any):
    rows = json.loads(run("list", store.root, "--json"))
    assert [(r["version"], r["step"], r["format"], r["base_version"], r["num_changed"]) for r in rows] == [
        (1, 0, "full", None, None),
        (2, 5, "sparse", 1, 1),
        (3, 6, "sparse", 2, 4),
    ]
    assert all(row["full_bytes"] == 2 * (64 + 32 * 64) for row in rows)
    (store.folder(2) / MANIFEST_NAME).write_text("{")
    text = run("list", store.root)
    assert "damaged" in text
    assert "not a weight manifest" in text
    assert f"{4 / (64 + 32 * 64):.2%}" in text


def test_show(store: WeightStore, run: Any):
    text = run("show", store.root, 2)
    assert "version 2 of run someone's run, step 5: sparse, an update of version 1" in text
    assert UPDATE_NAME in text
    assert json.loads(run("show", store.root, 2, "--json"))["tensors"][0]["name"] == "norm"


def test_diff(store: WeightStore, run: Any):
    assert [(d["name"], d["num_changed"], d["size"]) for d in json.loads(run("diff", store.root, 1, 3, "--json"))] == [
        ("norm", 1, 64),
        ("down", 4, 2048),
    ]
    assert f"{1 / 64:.3%}" in run("diff", store.root, 1, 2)


def test_verify_names_what_is_damaged_and_what_builds_on_it(
    store: WeightStore, run: Any, capsys: pytest.CaptureFixture[str]
):
    assert json.loads(run("verify", store.root, "--json")) == {"1": None, "2": None, "3": None}
    path = store.folder(2) / UPDATE_NAME
    path.write_bytes(path.read_bytes()[:-1])
    assert run("verify", store.root, 1) == "version 1: intact\n"
    with pytest.raises(SystemExit) as ended:
        run("verify", store.root)
    assert ended.value.code == 1
    first, *others = capsys.readouterr().out.splitlines()
    assert first == "version 1: intact"
    assert [line.startswith(f"version {n}: {path} has") for n, line in zip((2, 3), others, strict=True)] == [True, True]


def test_rollback_publishes_the_old_weights_as_the_newest(store: WeightStore, run: Any):
    assert json.loads(run("rollback", store.root, 2, "--json")) == {"version": 4, "from_version": 2, "step": 5}
    assert store.manifest(4).format == "full"
    assert store.manifest(4).content_sha256 == store.manifest(2).content_sha256
    assert store.manifest(4).golden == GOLDEN
    for name, tensor in read_version(store, 4).items():
        np.testing.assert_array_equal(tensor.words, read_version(store, 2)[name].words)


def test_watch_says_how_far_each_replica_is_behind(store: WeightStore, run: Any):
    registry = ReplicaRegistry(store.root / "replicas")
    registry.report("a", url="http://a:1", state="healthy", version=1, step=0)
    registry.report("b", url="http://b:1", state="starting", version=-1, step=-1)
    text = run("watch", store.root, "--once")
    assert "newest version 3" in text
    (a,) = [line.split() for line in text.splitlines() if line.lstrip().startswith("a ")]
    assert a[:5] == ["a", "healthy", "1", "2", "0"]
    (b,) = [line.split() for line in text.splitlines() if line.lstrip().startswith("b ")]
    assert b[:5] == ["b", "starting", "-", "-", "-"]


def test_wrong_input_is_one_clear_line(
    store: WeightStore, run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    for arguments, message in (
        (("list", tmp_path / "nowhere"), "holds no weight version; expected a store such as runs/demo/weights"),
        (("show", store.root, 9), "holds no version 9; it holds [1, 2, 3]"),
        (("diff", store.root, 1, 9), "holds no version 9"),
    ):
        with pytest.raises(SystemExit) as ended:
            run(*arguments)
        assert ended.value.code == 1
        assert message in capsys.readouterr().err
