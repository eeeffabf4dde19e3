"""From the optimizer to vLLM's own model: after many updates it holds, bit by bit, what the converted model does.

The model is built by vLLM in this process. test_weight_round.py asks servers that are updated, and
test_sync_end_to_end.py, in the soak, does all of it together.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.support.live_models import apply, assert_same, bits_of, engine_of, fresh
from tests.support.live_models import distributed as distributed
from tests.support.sync_learner import Learner, make_model

pytest.importorskip("vllm", reason="vLLM is not installed")

NUM_UPDATES = 5


def test_after_many_updates_the_model_is_the_converted_one(tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    folder, converted = tmp_path / "model", tmp_path / "converted"
    make_model(folder, "Qwen3", tied=True)
    learner = Learner(folder, tmp_path, "float32")
    served = engine_of(folder, "float32")

    def update(expected: str) -> None:
        manifest = learner.publish()
        assert manifest.format == expected
        apply(served, learner.store, manifest)

    try:
        update("full")
        before = bits_of(served.model)
        for step in range(NUM_UPDATES):
            learner.step(step)
            update("sparse")
        learner.publisher.close()
        learner.start_publishing()
        learner.step(NUM_UPDATES)
        update("full")
        learner.convert(folder, converted)
    finally:
        learner.close()
    held = bits_of(served.model)
    assert all((held[name] != bits).any() for name, bits in before.items())
    assert_same(held, fresh(folder, "float32", dict(load_file(converted / "model.safetensors"))))
    assert np.isfinite(next(iter(served.model.parameters())).detach().numpy()).all()
