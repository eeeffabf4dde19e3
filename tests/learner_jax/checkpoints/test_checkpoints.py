"""Checkpoints: exact on any mesh, one layer to a chunk, complete, and of one model only."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorstore

from learner_jax.checkpoints import checkpoints as checkpoint
from learner_jax.checkpoints.checkpoints import (
    CheckpointError,
    Checkpoints,
    newest_step,
    unfinished,
)
from learner_jax.checkpoints.hashes import HASHES
from learner_jax.checkpoints.manifest import ArraySpec, read_manifest
from learner_jax.models import init_parameters
from learner_jax.runtime import this_code
from learner_jax.training import objective
from learner_jax.training.engine import Engine
from learner_jax.training.train_step import TrainState
from tests.conftest import REPOSITORY
from tests.support.checkpoint_states import (
    LAYERS,
    assert_equal,
    host_parameters,
    make_state,
    placed,
    position,
    restored,
    save,
)
from tests.support.held_commits import Hold
from tests.support.held_commits import hold as hold
from tests.support.learner_runs import SETTINGS, Crash, Records, fill, run
from tests.support.tiny_model import TINY

# Exact.


def test_a_resumed_run_ends_in_the_same_state_bit_by_bit(tmp_path: Path) -> None:
    """Parameters, both moments, the schedule's count, step and key, through the real loop."""
    chosen = objective.reinforcement(SETTINGS.loss)
    engine = Engine(SETTINGS, TINY, objective=chosen, temperature=1.0, devices=jax.devices()[:1])
    params = jax.tree.map(np.asarray, init_parameters(TINY, jax.random.key(3)))
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for directory in (whole, broken):
        fill(directory, 12)
    run(engine, params, whole)
    with pytest.raises(Crash):
        run(engine, params, broken, log=Records(lambda r: r["event"] == "step" and r["step"] == 5))
    _, log = run(engine, params, broken)
    (resumed,) = [record for record in log if record["event"] == "resumed"]
    assert (resumed["step"], resumed["verified"]) == (4, True)

    expected, at = restored(whole / "checkpoints", engine.init_state(params, seed=1))
    got, resumed_at = restored(broken / "checkpoints", engine.init_state(params, seed=2))
    assert int(expected.step) == 6
    assert min(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(expected.opt_state) if leaf.ndim > 1) > 0
    assert_equal(got, expected)
    assert resumed_at.completed_steps == at.completed_steps == 6
    assert dict(at.steps_of_versions) == {version: version - 1 for version in range(1, 8)}
    # Versions of the broken run: those of its first life up to the checkpoint, and then new ones, never used before.
    later = dict(resumed_at.steps_of_versions)
    assert [step for version, step in sorted(later.items())] == [0, 1, 2, 3, 4, 4, 5, 6]
    assert resumed_at.trained_version == max(later)


MESHES = [None, {"fsdp": 8, "tensor": 1}, {"fsdp": 2, "tensor": 4}]


@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_another_mesh_gets_the_same_values(mesh: dict[str, int] | None, tmp_path: Path) -> None:
    saved = make_state(1, mesh={"fsdp": 4, "tensor": 2})
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(saved, position(1))
    checkpoints.close()
    like = make_state(2, mesh=mesh)
    state, found = restored(tmp_path, like)
    assert_equal(state, saved)
    assert found == position(1)
    for leaf, wanted in zip(jax.tree.leaves(state), jax.tree.leaves(like), strict=True):
        assert leaf.sharding.is_equivalent_to(wanted.sharding, leaf.ndim)


def test_a_save_holds_the_state_as_it_was_and_shows_nothing_before_it_is_committed(hold: Hold, tmp_path: Path) -> None:
    state, expected = make_state(1), make_state(1)
    update = jax.jit(lambda x: jax.tree.map(lambda leaf: leaf + jnp.ones_like(leaf), x), donate_argnums=0)
    checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.save(state, position(1))
    moved = update(state)  # may reuse the buffers; where Orbax still reads them, a CPU copies instead
    assert hold.reached.wait(30)
    assert checkpoints.is_saving()
    (folder,) = unfinished(tmp_path)
    with pytest.raises(CheckpointError, match=rf"holds no checkpoint.*{folder} there was never committed"):
        newest_step(tmp_path)
    hold.released.set()
    checkpoints.wait()
    assert (newest_step(tmp_path), unfinished(tmp_path)) == (1, ())
    checkpoints.close()
    assert_equal(restored(tmp_path, moved)[0], expected)


# In chunks.


def chunk_shapes(directory: Path, step: int) -> dict[str, tuple[int, ...]]:
    """Array -> shape of its chunks, as the files say."""
    base = f"file://{directory / str(step) / 'state'}/"
    store = tensorstore.KvStore.open({"driver": "ocdbt", "base": base}).result()
    found = {}
    for key in (k.decode() for k in store.list().result()):
        if key.endswith("/.zarray"):
            metadata = json.loads(store.read(key).result().value)
            assert metadata["compressor"] is None
            found[key.removesuffix("/.zarray")] = tuple(metadata["chunks"])
    return found


@pytest.mark.parametrize("mesh", [None, {"fsdp": 4, "tensor": 2}], ids=str)
def test_every_chunk_of_a_stack_is_one_layer(mesh: dict[str, int] | None, tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(make_state(1, mesh=mesh), position(1))
    checkpoints.close()
    chunks = chunk_shapes(tmp_path, 1)
    stacked = {name: shape for name, shape in chunks.items() if ".layers." in name}
    assert len(stacked) == 9  # three stacks, each with two moments
    layer = (1, 32, 16) if mesh is None else (1, 16, 4)
    for name, shape in stacked.items():
        whole = (1, 16) if name.endswith("norm.weight") else (1, 32, 16) if ".trunk." in name else layer
        assert shape == whole, name
    assert chunks["params.embed.weight"] == ((64, 16) if mesh is None else (32, 4))
    assert set(read_manifest(tmp_path / "1").arrays["state"]) == set(chunks)


def test_no_chunk_is_larger_than_the_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "_CHUNK_BYTES", 1 << 20)
    params = {"embed": {"weight": jnp.ones((1536, 512))}, "layers": {"up": {"weight": jnp.ones((2, 768, 512))}}}
    state = TrainState(params, (), jnp.zeros((), jnp.int32), jax.random.key_data(jax.random.key(0)))
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(state, position(1))
    checkpoints.close()
    chunks = chunk_shapes(tmp_path, 1)
    assert chunks["params.embed.weight"] == (512, 512)
    assert chunks["params.layers.up.weight"] == (1, 384, 512)


# Complete.


def test_the_manifest_says_what_the_arrays_do_not(tmp_path: Path) -> None:
    save(tmp_path, 5, run="demo", config={"learner": {"steps": 7}})
    manifest = read_manifest(tmp_path / "5")
    assert manifest.position == position(5)
    assert (manifest.run, manifest.config) == ("demo", {"learner": {"steps": 7}})
    assert manifest.arrays["state"]["params.layers.up.weight"] == ArraySpec((LAYERS, 32, 16), "float32")
    assert manifest.arrays["state"]["key"] == ArraySpec((2,), "uint32")
    assert json.loads((tmp_path / "5" / "manifest" / "metadata").read_text())["schema"] == 3
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert manifest.code.commit == (head.stdout.strip() or None)


def test_the_code_has_a_version_where_there_is_no_git(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    code = this_code.__wrapped__()
    assert (code.commit, bool(code.version)) == (None, True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda: make_state(1, moments=jnp.bfloat16),
            r"opt_state\.0\.mu\.embed\.weight is float32\[64,16\] in the checkpoint, expected bfloat16\[64,16\]",
        ),
        (
            lambda: TrainState(*[{"embed": {"weight": jnp.ones((64, 16))}}, (), jnp.zeros((), jnp.int32), jnp.ones(2)]),
            r"key is uint32\[2\] in the checkpoint, expected float32\[2\]",
        ),
    ],
    ids=["moments", "key"],
)
def test_another_model_is_refused_by_the_first_tensor_that_differs(
    change: Callable[[], TrainState], message: str, tmp_path: Path
) -> None:
    save(tmp_path, 1)
    with pytest.raises(CheckpointError, match=message):
        restored(tmp_path, change())


def test_a_missing_and_an_unknown_tensor_are_named(tmp_path: Path) -> None:
    save(tmp_path, 1)
    state = make_state(1)
    del state.params["value"]
    with pytest.raises(CheckpointError, match=r"params\.value.* is float32\[6,32,16\] in the .*, expected absent"):
        restored(tmp_path, state)
    more = make_state(1)
    more.params["head"] = {"weight": jnp.ones(2)}
    with pytest.raises(CheckpointError, match=r"params\.head\.weight is absent in the checkpoint, expected float32"):
        restored(tmp_path, more)


def test_the_reference_travels_and_is_missed_where_it_is_needed(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    state, reference = make_state(1), placed(host_parameters(7), None)
    checkpoints.save(state, position(1), reference=reference)
    _, _, found = checkpoints.restore(state, reference=placed(host_parameters(8), None))
    np.testing.assert_array_equal(found["embed"]["weight"], reference["embed"]["weight"])
    checkpoints.save(state, position(2))
    with pytest.raises(CheckpointError, match=r"2 holds no reference.*learner\.loss\.kl\.reset_every"):
        checkpoints.restore(state, reference=reference)
    checkpoints.close()


def test_another_schema_is_refused(tmp_path: Path) -> None:
    save(tmp_path, 1)
    file = tmp_path / "1" / "manifest" / "metadata"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"schema": 9}))
    (tmp_path / "1" / HASHES).unlink()
    with pytest.raises(CheckpointError, match="has schema 9, this build reads 3"):
        restored(tmp_path, make_state(1))
    (tmp_path / "1" / "manifest").rename(tmp_path / "1" / "position")  # where schema 2 had it
    with pytest.raises(CheckpointError, match="has schema 2, this build reads 3"):
        restored(tmp_path, make_state(1))
