"""Stages of a pipeline: each takes updates of its own layers, and a CPU's makes the tensors that it receives into."""

from __future__ import annotations

from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from serving_bridge.vllm_plugin.stages import make_room_between_stages


def test_a_stage_that_was_not_warmed_up_makes_its_tensors_once() -> None:
    made: list[dict[str, Any]] = []

    class Runner:
        intermediate_tensors: Any = None
        max_num_tokens, device = 64, "cpu"
        model_config = SimpleNamespace(dtype="float32")
        model = SimpleNamespace(make_empty_intermediate_tensors=lambda **asked: made.append(asked) or ["room"])

        def sync_and_gather_intermediate_tensors(self, num_tokens: int, *, received: list[str]) -> list[str]:
            assert self.intermediate_tensors is not None
            return [*self.intermediate_tensors, *received][:num_tokens]

    make_room_between_stages(Runner)
    make_room_between_stages(Runner)
    runner = Runner()
    for _ in range(2):
        assert runner.sync_and_gather_intermediate_tensors(2, received=["a", "b"]) == ["room", "a"]
    assert made == [{"batch_size": 64, "dtype": "float32", "device": "cpu"}]


def test_a_stage_takes_the_changes_of_its_own_layers_and_leaves_out_the_others() -> None:
    torch = pytest.importorskip("torch")
    from serving_bridge.vllm_plugin.live import LiveWeights

    class Stage(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.mine = torch.nn.Parameter(torch.zeros(3))

        def load_weights(self, weights: Iterable[tuple[str, Any]]) -> set[str]:
            found = dict(weights)
            self.mine.copy_(found["mine"])
            return {"mine"}

    stage = Stage()
    live = LiveWeights(stage)
    live.load({"mine": torch.tensor([1.0, 2.0, 3.0]), "of another": torch.tensor([4.0])})
    assert live.routed
    assert [live.holds(name) for name in ("mine", "of another")] == [True, False]
    old, new = (np.array([value], np.float32).view(np.uint32) for value in (2.0, 9.0))
    live.write(live.patches([("of another", np.array([0]), new, old), ("mine", np.array([1]), new, old)]))
    assert stage.mine.tolist() == [1.0, 9.0, 3.0]
