"""Held-out skill of the weights that a job published last, computed here, without a fleet."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from configs.schema import Config
from serving_bridge.weights import read_path
from tools.assembly import build_encoder, build_store, build_task, run_paths
from tools.testing.fake_vllm import Qwen3


def correct_answers(config: Config) -> int:
    """How many of `evaluation.num_problems` held-out problems the newest version answers rightly, greedily."""
    paths = run_paths(config)
    encoder, model_config = build_encoder(config, Path(config.model.path))
    store = build_store(config, paths)
    newest = store.versions()[-1]
    weights = {
        changed.entry.name: changed.tensor.words.view(np.float32).reshape(changed.tensor.shape)
        for changed in read_path(store, store.path(newest))
    }
    model, task = Qwen3(model_config, weights), build_task(config)
    correct = 0
    for index in range(config.evaluation.num_problems):
        problem = task.problem("heldout", index)
        tokens, sampled = encoder.supervised(problem, task.target(problem))
        # Greedy decoding gives the target if and only if each of its tokens is the likeliest after those before it.
        likeliest = model.logits(np.array([tokens]))[0].argmax(-1)
        targets = np.flatnonzero(sampled)
        correct += bool((likeliest[targets - 1] == np.array(tokens)[targets]).all())
    task.close()
    return correct
