"""The command on a real vLLM server: a model folder, a checkpoint of it, and a version of a weight store, all alike."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import jax
import numpy as np
import pytest
import tomli_w

from learner_jax.contracts import GoldenPrompt, ModelConfig, read_model_config
from learner_jax.conversion import from_hf
from learner_jax.settings import OptimizerSettings
from serving_bridge.fleet import Replica
from serving_bridge.settings import ServingSettings, StoreSettings
from serving_bridge.text import load_tokenizer
from serving_bridge.vllm import VllmClient
from serving_bridge.weights import Publisher, WeightStore
from tools import evaluate
from tools.evaluation import session

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


def model_of(folder: Path) -> tuple[dict[str, bytes], ModelConfig, str]:
    """All that a server's answers depend on: weights, shape, and what names the tokenizer."""
    from safetensors.numpy import load_file

    weights = {name: value.tobytes() for name, value in load_file(folder / "model.safetensors").items()}
    return weights, read_model_config(folder), load_tokenizer(folder).fingerprint


class OneServer:
    """A server that starts on the first folder, and then stands for one on every folder that holds the same model.

    Attributes:
      folders: for which a server was asked for.
    """

    def __init__(self) -> None:
        self.folders: list[Path] = []
        self._replica: Replica | None = None

    @asynccontextmanager
    async def served(
        self, model_dir: Path, settings: ServingSettings, *, log_path: Path, family: str = ""
    ) -> AsyncIterator[VllmClient]:
        self.folders.append(model_dir)
        async with aiohttp.ClientSession() as http:
            if self._replica is None:
                self._model, self._settings = model_of(model_dir), settings
                self._replica = Replica("evaluation", model_dir, settings, http, log_path=log_path)
                await self._replica.start()
                await self._replica.client.control().name_version(0)
            assert model_of(model_dir) == self._model
            assert settings == self._settings
            client = self._replica.client
            yield VllmClient(client.base_url, http, token=client.token)

    def stop(self) -> None:
        if self._replica is not None:
            asyncio.run(self._replica.stop())


@pytest.fixture
def one_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[OneServer]:
    server = OneServer()
    monkeypatch.setattr(session, "served", server.served)
    yield server
    server.stop()


def evaluate_all(stories_model: Path, tmp_path: Path) -> None:
    """By folder, by a checkpoint of it, as a version of a weight store, and by folder once more."""
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


def test_folder_checkpoint_and_version_are_one_model_with_the_same_answers(
    one_server: OneServer, stories_model: Path, tmp_path: Path
) -> None:
    evaluate_all(stories_model, tmp_path)
    assert [folder == stories_model for folder in one_server.folders] == [True, False, False]


@pytest.mark.soak
def test_servers_on_folder_checkpoint_and_version_give_the_same_answers(stories_model: Path, tmp_path: Path) -> None:
    evaluate_all(stories_model, tmp_path)
