"""Checkpoints: exact on any mesh, one layer to a chunk, and no damage that goes unnoticed."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorstore

from configs.load import load_config, save_config
from learner_jax.checkpoints import checkpoints as checkpoint
from learner_jax.checkpoints import hashes as checkpoint_files
from learner_jax.checkpoints.checkpoints import (
    CheckpointError,
    Checkpoints,
    newest_step,
    restore_parameters,
    unfinished,
    verify,
)
from learner_jax.checkpoints.hashes import HASHES, check_files, write_hashes
from learner_jax.checkpoints.manifest import ArraySpec, read_manifest
from learner_jax.models import init_parameters
from learner_jax.runtime import this_code
from learner_jax.training import objective
from learner_jax.training.engine import Engine
from learner_jax.training.train_step import TrainState
from serving_bridge.telemetry.metrics_log import read_metrics
from tests.conftest import QUICK_COMPILE, REPOSITORY
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
from tests.support.learner_runs import SETTINGS, Crash, Records, fill, run
from tests.support.tiny_model import TINY
from tools.assembly import wiring


class Hold:
    """Holds Orbax back from writing the manifest, and so from committing, until released."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reached, self.released = threading.Event(), threading.Event()
        real = json.dumps

        def held(value: Any, *args: Any, **kwargs: Any) -> str:
            if isinstance(value, dict) and "position" in value:
                self.reached.set()
                assert self.released.wait(30)
            return real(value, *args, **kwargs)

        monkeypatch.setattr(json, "dumps", held)


@pytest.fixture
def hold(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hold]:
    held = Hold(monkeypatch)
    yield held
    held.released.set()


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


# Damage.


def largest(folder: Path) -> Path:
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def flip(folder: Path) -> tuple[Path, str]:
    file = largest(folder)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)
    return file, "expected content with xxh3_128 [0-9a-f]{32}, got [0-9a-f]{32}"


def cut(folder: Path) -> tuple[Path, str]:
    file = largest(folder)
    size = file.stat().st_size
    os.truncate(file, size - 1)
    return file, f"expected {size} bytes, got {size - 1}"


def lose(folder: Path) -> tuple[Path, str]:
    file = folder / "state" / "manifest.ocdbt"
    size = file.stat().st_size
    file.unlink()
    return file, f"expected {size} bytes, but the file is missing"


def forge(folder: Path) -> tuple[Path, str]:
    file = folder / HASHES
    file.write_text("{")
    return file, "expected a table of hashes, got JSONDecodeError"


@pytest.mark.parametrize("damage", [flip, cut, lose, forge])
def test_damage_is_named_and_the_way_back_works(damage: Callable[[Path], tuple[Path, str]], tmp_path: Path) -> None:
    save(tmp_path, 1, 2)
    assert verify(tmp_path, 2) == checkpoint_files.FileCheck(hashed=True)
    file, message = damage(tmp_path / "2")
    assert len(verify(tmp_path, 2).problems) == 1
    for read in (lambda: restored(tmp_path, make_state(0)), lambda: restore_parameters(tmp_path)):
        with pytest.raises(CheckpointError, match=rf"{tmp_path}/2 is damaged: {re.escape(str(file))}: {message}") as e:
            read()
    found = re.search(rf"used is {tmp_path}/1, which is intact: .* run (mv .*), then start", str(e.value))
    assert found
    subprocess.run(found[1], shell=True, check=True)
    state, at = restored(tmp_path, make_state(0))
    assert_equal(state, make_state(1))
    assert at == position(1)
    save(tmp_path, 2)
    assert newest_step(tmp_path) == 2


def test_the_way_back_passes_over_damaged_checkpoints(tmp_path: Path) -> None:
    save(tmp_path, 1, 2, 3, 4)
    for step in (4, 2):
        flip(tmp_path / str(step))
    (tmp_path / "3" / "manifest" / "metadata").unlink()
    with pytest.raises(CheckpointError, match=rf"used is {tmp_path}/1, .*2\.damaged .*3\.damaged .*4\.damaged"):
        restored(tmp_path, make_state(0))
    (tmp_path / "3" / HASHES).unlink()  # then it is the manifest itself that is missed
    with pytest.raises(CheckpointError, match=rf"3 has no readable manifest: .*; the newest .* is {tmp_path}/1, "):
        restored(tmp_path, make_state(0), step=3)
    flip(tmp_path / "1")
    with pytest.raises(CheckpointError, match="4 is damaged: .* there is no intact one before it"):
        restored(tmp_path, make_state(0))


def test_without_hashes_the_index_of_the_arrays_tells(tmp_path: Path) -> None:
    save(tmp_path, 1, 2, 3)
    for step in (1, 2, 3):
        (tmp_path / str(step) / HASHES).unlink()
    for file in (tmp_path / "3" / "state" / "d").iterdir():
        file.write_bytes(b"")
    message = rf"3 is damaged: .*; the newest .* is {tmp_path}/2, which is there and readable, but has no hashes"
    with pytest.raises(CheckpointError, match=message) as raised:
        restored(tmp_path, make_state(0))
    assert "tensorstore_spec" not in str(raised.value)
    assert not Checkpoints(tmp_path, keep=9).check(2)
    assert_equal(restored(tmp_path, make_state(0), step=2)[0], make_state(2))


def test_missing_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere does not exist"):
        restore_parameters(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        restore_parameters(tmp_path)
    save(tmp_path, 1)
    with pytest.raises(CheckpointError, match=r"7 does not exist; those there: \[1\]"):
        restored(tmp_path, make_state(0), step=7)
    assert verify(tmp_path, 7).problems


KILLED = """
import json, sys, time
from pathlib import Path
from configs.load import load_config, save_config
from learner_jax.checkpoints import checkpoints as checkpoint, hashes as checkpoint_files, proof as checkpoint_proof
from tests.support.checkpoint_states import make_state, position, save

directory = Path(sys.argv[1])
save(directory, 1)
checkpoint.HASHES_WITHIN_S = 0.0
real_dumps = json.dumps

def slow_hashes(*args, should_stop, **kwargs):
    while not should_stop():
        time.sleep(0.01)
    raise checkpoint_files.Stopped

def slow_dumps(value, *args, **kwargs):
    if isinstance(value, dict) and value.get("position", {}).get("completed_steps") == 3:
        print("writing", flush=True)
        time.sleep(60)
    return real_dumps(value, *args, **kwargs)

checkpoint_proof.hash_files, json.dumps = slow_hashes, slow_dumps
checkpoints = checkpoint.Checkpoints(directory, keep=9)
for step in (2, 3):
    checkpoints.save(make_state(step), position(step))
    if step == 2:
        checkpoints.wait()
        print("committed", flush=True)
checkpoints.wait()
"""


def test_kill_9_before_hashing_and_while_writing(tmp_path: Path) -> None:
    """A process is killed with one step committed and not hashed, and another half written."""
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE, text=True, cwd=REPOSITORY
    ) as process:
        assert process.stdout is not None
        assert [process.stdout.readline(), process.stdout.readline()] == ["committed\n", "writing\n"]
        process.send_signal(signal.SIGKILL)
    assert (tmp_path / "1" / HASHES).exists()
    assert not (tmp_path / "2" / HASHES).exists()
    (left,) = unfinished(tmp_path)
    assert left.startswith("3.")
    checkpoints = Checkpoints(tmp_path, keep=9)
    assert checkpoints.latest_step() == newest_step(tmp_path) == 2
    assert not checkpoints.check(2)
    state, at, _ = checkpoints.restore(make_state(0))
    assert_equal(state, make_state(2))
    assert at == position(2)
    checkpoints.save(make_state(4), position(4))
    checkpoints.close()
    assert unfinished(tmp_path) == ()


def test_hashes_end_with_the_checkpoint_that_the_policy_deletes(tmp_path: Path) -> None:
    log = Records()
    save(tmp_path, 1, 2, 3, keep=2, log=log)
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob(HASHES)) == [
        f"2/{HASHES}",
        f"3/{HASHES}",
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2", "3"]
    assert [(r["event"], r["step"], r["verified"]) for r in log] == [("committed", s, True) for s in (1, 2, 3)]


def test_hashes_appear_whole_or_not_at_all(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * 10)
    with pytest.raises(checkpoint_files.Stopped):
        write_hashes(tmp_path, should_stop=lambda: True)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert check_files(tmp_path) == checkpoint_files.FileCheck(hashed=False)
    (tmp_path / f".{HASHES}.0000").write_text("{")  # a life before was killed while it wrote them
    write_hashes(tmp_path)
    assert check_files(tmp_path) == checkpoint_files.FileCheck(hashed=True)
    assert list(json.loads((tmp_path / HASHES).read_text())["files"]) == ["a"]


def test_a_commit_that_takes_long_is_told_of_and_the_wait_is_bounded(
    hold: Hold, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "_SLOW_S", 0.05)
    log = Records()
    checkpoints = Checkpoints(tmp_path, keep=1, log=log)
    checkpoints.save(make_state(1), position(1))
    with pytest.raises(
        CheckpointError,
        match=rf"{tmp_path}/1 to be committed from the disk and gave up \(learner\.max_wait_s = 0\.2 s\)",
    ):
        checkpoints.wait(0.2)
    assert [(record["event"], record["step"]) for record in log] == [("uncommitted", 1)]
    assert log[0]["waited_s"] >= 0.05
    monkeypatch.setattr(checkpoint, "_SLOW_S", 30.0)  # closing waits too, on a busy machine for longer than that
    hold.released.set()
    checkpoints.close()
    assert [record["event"] for record in log] == ["uncommitted", "committed"]


def test_a_save_that_fails_is_told_by_the_next_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.save(make_state(1), position(1))
    checkpoints.wait()

    real = json.dumps

    def full(value: Any, *args: Any, **kwargs: Any) -> str:
        if isinstance(value, dict) and "position" in value:
            raise OSError(28, "No space left on device")
        return real(value, *args, **kwargs)

    monkeypatch.setattr(json, "dumps", full)
    with pytest.raises(CheckpointError, match=r"2 could not be written: .*No space left on device"):  # noqa: PT012
        checkpoints.save(make_state(2), position(2))
        checkpoints.wait()
    monkeypatch.setattr(json, "dumps", real)
    assert newest_step(tmp_path) == 1
    assert_equal(restored(tmp_path, make_state(0))[0], make_state(1))


def test_sigterm_saves_within_the_grace_and_says_so(tmp_path: Path) -> None:
    """The real learner process, in the middle of a run; the supervisor would kill it after 60 s."""
    config = load_config(
        REPOSITORY / "configs" / "demo.toml",
        [
            f"run.directory={tmp_path}",
            "learner.steps=1000",
            "learner.groups_per_step=2",
            "rollout.group_size=2",
            "learner.microbatch_rows=4",
            "learner.checkpoint.every=1000",
            "learner.peak_tflops=1",
            "rollout.max_staleness=1000",
        ],
    )
    save_config(config, tmp_path / "config.toml")
    paths = wiring.run_paths(config)
    shutil.copytree(wiring.base_model_dir(config, paths), paths.start_model)  # as if a supervised start had been
    encoder, model = wiring.build_encoder(config, paths.start_model)
    fill(tmp_path, 600, vocabulary=model.vocab_size, tokenizer=encoder.tokenizer.fingerprint, run_name="demo")
    command = [sys.executable, "-m", "tools.learner", "--config", str(tmp_path / "config.toml")]
    with (tmp_path / "output").open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, cwd=REPOSITORY, env=os.environ | {"XLA_FLAGS": QUICK_COMPILE}
        )
    try:
        deadline = time.monotonic() + 400  # a busy machine starts a process for minutes
        metrics = tmp_path / "metrics.jsonl"
        while not (metrics.exists() and '"event":"step"' in metrics.read_text()):
            assert process.poll() is None, (tmp_path / "output").read_text()
            assert time.monotonic() < deadline, (tmp_path / "output").read_text()
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=120) == 0, (tmp_path / "output").read_text()
    finally:
        process.kill()
        process.wait()
    records = read_metrics(metrics)
    (stopping,) = [record for record in records if record["event"] == "stopping"]
    (committed,) = [record for record in records if record["event"] == "committed"]
    assert committed["step"] == stopping["step"] == newest_step(tmp_path / "checkpoints")
    assert stopping["step"] < 1000
    assert committed["verified"]
    assert verify(tmp_path / "checkpoints", stopping["step"]) == checkpoint_files.FileCheck(hashed=True)
    manifest = read_manifest(tmp_path / "checkpoints" / str(stopping["step"]))
    assert (manifest.run, manifest.config["learner"]["steps"]) == ("demo", 1000)
    assert manifest.position.consumed_trajectory_ids
