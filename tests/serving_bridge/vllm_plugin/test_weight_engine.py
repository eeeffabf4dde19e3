"""A worker's weights are of a version only if every parameter was loaded; a refused staging holds nobody up."""

from __future__ import annotations

import time
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from serving_bridge.access.lease import Lease, LeaseError
from serving_bridge.weights.store import WeightStore
from serving_bridge.weights.writer import VersionWriter
from tests.support.weight_world import make_model, tensors_of

pytest.importorskip("vllm", reason="vLLM is not installed")


def test_a_load_that_breaks_off_or_misses_parameters_is_never_intact(tmp_path: Path):
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # vLLM's own, while it is imported
        from serving_bridge.vllm_plugin.engine import WeirEngine
        from serving_bridge.vllm_plugin.stage import Applied

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = torch.nn.Parameter(torch.zeros(64))
            self.broken, self.missed = True, True

        def load_weights(self, weights: Any) -> set[str]:
            for name, tensor in weights:
                if name == "model.norm.weight":
                    self.norm.copy_(tensor)
                    if self.broken:
                        raise MemoryError("halfway")
            return set() if self.missed else {"norm"}

    source = make_model(tmp_path / "a", 0)
    config = SimpleNamespace(hf_config=source.config, model="a", dtype=torch.float32)
    model = Model()
    engine = WeirEngine(
        SimpleNamespace(),
        SimpleNamespace(model_config=config, parallel_config=SimpleNamespace(pipeline_parallel_size=1)),
        torch.device("cpu"),
        model,
    )
    store = WeightStore(tmp_path / "weights", "run")
    manifest = VersionWriter(store).publish(tensors_of(source).items(), step=0, golden=[])
    update = {"version": manifest.version, "content_sha256": manifest.content_sha256, "round_id": "this"}

    def stage() -> None:
        engine.lease.take("this", 60)
        engine.stager.begin(store, manifest.version, manifest.content_sha256, engine.applied)
        while engine.stager.status()[0] == "reading":
            time.sleep(0.01)
        assert engine.stager.status()[:3] == ("staged", manifest.version, "")

    stage()
    with pytest.raises(MemoryError):
        engine.update_weights(update)
    assert (engine.intact, engine.applied) == (False, None)
    model.broken = False
    with pytest.raises(RuntimeError, match="left 1 parameters as they were, e.g. norm"):
        engine.update_weights(update)
    assert (engine.intact, engine.applied) == (False, None)
    model.missed = False
    engine.update_weights(update)
    assert (engine.intact, engine.applied) == (True, Applied(manifest.version, manifest.content_sha256))
    np.testing.assert_array_equal(model.norm.detach().numpy(), tensors_of(source)["model.norm.weight"])
    engine.update_weights(update)  # again, by a controller that did not hear of the first time
    assert engine.intact
    np.testing.assert_array_equal(model.norm.detach().numpy(), tensors_of(source)["model.norm.weight"])
    model.broken = True
    assert engine.live.routed
    with pytest.raises(MemoryError):
        engine.live.load({"model.norm.weight": torch.ones(64)})
    assert not engine.live.routed, "nothing may be written by routes of which half are old"
    engine.applied = None
    stage()
    engine.shutdown()
    assert engine.stager.status() == ("idle", None, "", False)


def test_a_staging_that_is_refused_gives_the_lease_back(tmp_path: Path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # vLLM's own, while it is imported
        from serving_bridge.vllm_plugin.engine import WorkerExtension
        from serving_bridge.vllm_plugin.stage import StageError

    class Reading:
        """A version is still being read."""

        def begin(self, *_: Any) -> None:
            raise StageError("staging of version 1 has not ended")

    lease: Any = Lease()
    worker = WorkerExtension()
    engine: Any = SimpleNamespace(
        lease=lease, stager=Reading(), store=WeightStore(tmp_path, ""), applied=None, intact=True
    )
    worker.weight_transfer_engine = engine
    with pytest.raises(StageError, match="has not ended"):
        worker.weir_stage(2, "0" * 64, "late", 60.0)
    with pytest.raises(LeaseError, match="round late does not hold this replica"):
        lease.check("late")
    lease.take("next", 60.0)
    lease.release("next")
    for version in (-1, 2**31, True, "2"):
        with pytest.raises(StageError, match="expected a number up to"):
            worker.weir_stage(version, "0" * 64, "late", 60.0)  # type: ignore[arg-type]
    engine.store = None
    with pytest.raises(StageError, match="without WEIR_STORE_ROOT"):
        worker.weir_stage(2, "0" * 64, "late", 60.0)
    with pytest.raises(LeaseError):
        lease.check("late")
    worker.weight_transfer_engine = None
    with pytest.raises(RuntimeError, match="no weight-transfer engine"):
        worker.weir_status("late")
