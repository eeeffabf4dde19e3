"""Changes found on the devices are those that numpy finds on the host, on any mesh, and make the same versions."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from learner_jax.hosts.hosts import Hosts
from learner_jax.loop.device_changes import TooManyChangesError, device_changes
from learner_jax.loop.publishing import Publishing
from learner_jax.models import init_parameters
from learner_jax.models.hf_folder import export_tensors
from learner_jax.models.sharding import make_mesh, parameter_shardings, place
from learner_jax.settings.learner import MeshSettings
from serving_bridge.settings.serving import StoreSettings
from serving_bridge.weights.publisher import Publisher
from serving_bridge.weights.reader import read_version
from serving_bridge.weights.store import WeightStore
from tests.support.tiny_model import TINY


def versions(share: float, dtype: Any) -> tuple[Any, Any]:
    """Two versions of a model's weights, the second with a share of its elements moved, and one of those to -0."""
    base = jax.tree.map(lambda x: np.asarray(x).astype(dtype), init_parameters(TINY, jax.random.key(0)))
    rng = np.random.default_rng(1)

    def moved(x: np.ndarray) -> np.ndarray:
        return np.where(rng.random(x.shape) < share, x * x.dtype.type(1.5) + x.dtype.type(0.01), x).astype(dtype)

    new = jax.tree.map(moved, base)
    new["norm"]["weight"][3], base["norm"]["weight"][3] = -0.0, 0.0
    return new, base


def on_host(new: Any, base: Any, dtype: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    found = {}
    olds = dict(export_tensors(base, TINY, dtype))
    for name, array in export_tensors(new, TINY, dtype):
        words = np.uint16 if array.dtype.itemsize == 2 else np.uint32
        now, before = array.reshape(-1), olds[name].reshape(-1)
        (where,) = np.nonzero(now.view(words) != before.view(words))
        if where.size:
            found[name] = (where, now[where])
    return found


@pytest.mark.parametrize(
    ("mesh", "dtype", "name"),
    [((1, 1, 1), np.float32, "float32"), ((2, 2, 2), ml_dtypes.bfloat16, "bfloat16")],
    ids=["one device", "eight devices"],
)
def test_changes_are_those_that_numpy_finds(mesh: tuple[int, int, int], dtype: Any, name: str):
    new, base = versions(0.03, dtype)
    sizes = dict(zip(("data", "fsdp", "tensor"), mesh, strict=True))
    devices = jax.devices()[: int(np.prod(mesh))]
    shardings = parameter_shardings(TINY, make_mesh(MeshSettings(**sizes), devices))
    want = on_host(new, base, name)
    changes = list(device_changes(place(new, shardings), place(base, shardings), TINY, most=0.5))
    assert [change.name for change in changes] == list(want)
    for change in changes:
        where, values = want[change.name]
        np.testing.assert_array_equal(change.indices, where)
        assert change.values.dtype == dtype
        np.testing.assert_array_equal(change.values.view(np.uint8), values.view(np.uint8))


def test_too_many_changes_are_said_to_be_so_and_none_are_none():
    new, base = (jax.device_put(tree) for tree in versions(0.5, np.float32))
    with pytest.raises(TooManyChangesError, match="there is room for"):
        list(device_changes(new, base, TINY))
    assert list(device_changes(base, base, TINY)) == []


@pytest.mark.parametrize("share", [0.01, 0.7], ids=["sparse", "dense"])
def test_versions_compared_on_the_device_are_published_as_from_the_host(tmp_path: Path, share: float):
    engine: Any = SimpleNamespace(
        hosts=Hosts(),
        platform="cpu",
        model_config=TINY,
        settings=SimpleNamespace(publish_dtype="float32"),
        publication=SimpleNamespace(
            weights=lambda params: jax.tree.map(jnp.copy, params),
            golden_logprobs=lambda weights, prompts: jnp.zeros((1, 3)),
        ),
    )
    new, base = (jax.device_put(tree) for tree in versions(share, np.float32))
    manifests = {}
    for on_device in (True, False):
        store = WeightStore(tmp_path / str(on_device), "run")
        publisher = Publisher(store, StoreSettings(max_changed=0.5), log=lambda *_, **__: None)
        publishing = Publishing(
            engine,
            publisher,
            [[1, 2, 3]],
            keep=1,
            max_wait_s=60,
            log=lambda *_, **__: None,
            compare_on_device=on_device,
        )
        for step, params in enumerate((base, new, new)):
            publishing.start(params, step=step)
        publishing.wait()
        publishing.close()
        publisher.close()
        manifests[on_device] = [store.manifest(version) for version in store.versions()]
        for name, array in export_tensors(new, TINY, "float32"):
            assert read_version(store, 3)[name].words.tobytes() == array.tobytes()
    assert manifests[True] == manifests[False]
    assert [m.format for m in manifests[True]] == ["full", "sparse" if share < 0.5 else "full", "sparse"]
