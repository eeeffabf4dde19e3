"""The command on a real vLLM server: a model folder, a checkpoint of it, and a version of a weight store, all alike."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import tomli_w

from learner_jax.contracts import GoldenPrompt
from learner_jax.conversion import from_hf
from learner_jax.settings import OptimizerSettings
from serving_bridge.settings import StoreSettings
from serving_bridge.weights import Publisher, WeightStore
from tools import evaluate

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SUITE: dict[str, Any] = {
    "name": "stories",
    "source": "task",
    "limit": 4,
    "samples": 3,
    "ks": [1, 3],
    "sampling": {"temperature": 1.0, "top_p": 0.9, "max_tokens": 40, "stop": ["park"]},
    "task": {"provider": "keyword_story"},
}


def run(folder: Path, out: str, *source: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    (folder / "suite.toml").write_text(tomli_w.dumps(SUITE))
    with pytest.MonkeyPatch.context() as context:
        context.setattr(
            sys, "argv", ["evaluate", "--suite", str(folder / "suite.toml"), "--out", str(folder / out), *source]
        )
        evaluate.main()
    lines = (folder / out / "scored.jsonl").read_text().splitlines()
    return json.loads((folder / out / "results.json").read_text()), [json.loads(line) for line in lines]


def publish(store: Path, model: Path) -> None:
    """The folder's weights as version 1."""
    from safetensors.numpy import load_file

    publisher = Publisher(WeightStore(store, "run"), StoreSettings(), log=lambda *_, **__: None)
    tensors = {name: np.ascontiguousarray(value) for name, value in load_file(model / "model.safetensors").items()}
    publisher.publish(tensors.items(), step=0, golden=[GoldenPrompt(tokens=[1, 2], logprobs=[-0.5])])
    publisher.close()


def test_folder_checkpoint_and_version_give_the_same_answers(stories_model: Path, tmp_path: Path) -> None:
    results, samples = run(tmp_path, "folder", "--model", str(stories_model))
    metrics = results["suites"][0]["metrics"]
    assert results["model"]["kind"] == "folder"
    assert len(samples) == 12
    assert len({sample["answer"] for sample in samples}) == 12, "each sample has a seed of its own"
    assert 0 < metrics["mean_score"]["value"] < 1
    assert 0 < metrics["tokens"]["value"] <= 40
    assert not any("park" in sample["answer"] for sample in samples)
    before = [(tmp_path / "folder" / name).read_bytes() for name in ("results.json", "scored.jsonl")]

    from_hf(stories_model, out=tmp_path / "checkpoint", optimizer=OptimizerSettings())
    jax.clear_caches()
    publish(tmp_path / "store", stories_model)
    (tmp_path / "folder" / "logs" / "server.log").unlink()
    for out, source in (
        ("checkpoint", ["--checkpoint", str(tmp_path / "checkpoint"), "--base", str(stories_model)]),
        ("weights", ["--weights", str(tmp_path / "store"), "--base", str(stories_model)]),
        ("folder", ["--model", str(stories_model)]),
    ):
        again, found = run(tmp_path, out, *source)
        assert [sample["answer"] for sample in found] == [sample["answer"] for sample in samples]
        assert again["model"]["kind"] == out
        assert not list((tmp_path / out).glob("model-*")), "what was converted is gone"
    assert not (tmp_path / "folder" / "logs" / "server.log").exists(), "kept answers need no server"
    assert [(tmp_path / "folder" / name).read_bytes() for name in ("results.json", "scored.jsonl")] == before
