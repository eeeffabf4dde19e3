"""One definition of a whole checkpoint: all who read one agree on it, and name the way back."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from learner_jax.checkpoints import next_life, oust
from learner_jax.checkpoints import proof as checkpoint_proof
from learner_jax.checkpoints.checkpoints import CheckpointError, Checkpoints, Position, newest_step, restore_parameters
from learner_jax.checkpoints.folder import check, find_checkpoint, require_whole, step_of
from learner_jax.checkpoints.hashes import HASHES, FileCheck
from learner_jax.checkpoints.manifest import read_manifest
from learner_jax.conversion.convert import to_hf, verify
from learner_jax.settings.learner import OptimizerSettings
from learner_jax.training.optimizer import make_optimizer
from learner_jax.training.train_step import init_state
from tests.conftest import REPOSITORY
from tests.support.checkpoint_states import data_file
from tests.support.decoders import lively_parameters
from tests.support.model_folders import CONFIG, write_config
from tools import convert


@pytest.fixture(scope="module")
def params() -> Any:
    return lively_parameters(CONFIG)


def save_steps(directory: Path, params: Any, *steps: int, life: int = 0) -> None:
    """The learner's checkpoints; the norms are multiplied by the step, so that each step has values of its own."""
    checkpoints = Checkpoints(directory, keep=9)
    optimizer = make_optimizer(OptimizerSettings())
    for step in steps:
        values = jax.tree.map(jnp.array, params)
        values["norm"]["weight"] = values["norm"]["weight"] * step
        checkpoints.save(init_state(values, optimizer, seed=0), Position(step, 1, 0, (), life=life))
    checkpoints.close()


@pytest.fixture(scope="module")
def saved(params: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Steps 1 and 2 of a run, with the model's config beside them."""
    run = tmp_path_factory.mktemp("saved")
    save_steps(run / "checkpoints", params, 1, 2)
    write_config(run / "checkpoints" / "source_model")
    return run


@pytest.fixture
def run(saved: Path, tmp_path: Path) -> Path:
    shutil.copytree(saved, tmp_path / "the run")
    return tmp_path / "the run"


def learner(directory: Path) -> None:
    """Chooses and checks as a restart does."""
    checkpoints = Checkpoints(directory, keep=9)
    try:
        step = checkpoints.latest_step()
        assert step is not None
        checkpoints.check(step)
    finally:
        checkpoints.close()


def converter(directory: Path) -> None:
    to_hf(directory, out=directory.parent / "hf")


def comparison(directory: Path) -> None:
    assert verify(directory, directory.parent / "hf", logprobs=False).problems == ()  # what the converter wrote


def weights(directory: Path) -> None:
    """What learner.loss.kl.reference and the studies read."""
    restore_parameters(directory)


READERS = [learner, converter, comparison, weights]


def flip(directory: Path) -> None:
    path = data_file(directory / "2")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def of_another_run(directory: Path) -> None:
    """Arrays of one checkpoint under the manifest of another."""
    path = directory / "2" / "manifest" / "metadata"
    raw = json.loads(path.read_text())
    raw["arrays"]["state"]["params.norm.weight"]["shape"] = [33]
    path.write_text(json.dumps(raw))


DAMAGES: dict[str, tuple[Callable[[Path], Any], int]] = {
    "the description of the tree is gone": (lambda d: (d / "2" / "state" / "_METADATA").unlink(), 2),
    "the manifest is gone": (lambda d: shutil.rmtree(d / "2" / "manifest"), 2),
    "the manifest is empty": (lambda d: (d / "2" / "manifest" / "metadata").write_text(""), 2),
    "the manifest is of other arrays": (of_another_run, 2),
    "the state is gone": (lambda d: shutil.rmtree(d / "2" / "state"), 2),
    "a chunk is cut": (lambda d: os.truncate(data_file(d / "2"), data_file(d / "2").stat().st_size // 2), 2),
    "a chunk is empty": (lambda d: os.truncate(data_file(d / "2"), 0), 2),
    "a file of chunks is gone": (lambda d: data_file(d / "2").unlink(), 2),
    "the index is cut": (lambda d: os.truncate(d / "2" / "state" / "manifest.ocdbt", 20), 2),
    "the folder of one host's chunks is gone": (lambda d: shutil.rmtree(d / "2" / "state" / "ocdbt.process_0"), 2),
    "it was renamed to another step": (lambda d: (d / "2").rename(d / "7"), 7),
    "a step is a file": (lambda d: (d / "9").write_text("x"), 9),
    "a step is a link to nothing": (lambda d: (d / "9").symlink_to(d / "gone"), 9),
    "a step is a link to another step": (lambda d: (d / "9").symlink_to(d / "2"), 9),
    "a step is an empty folder": (lambda d: (d / "9").mkdir(), 9),
}
WITH_HASHES: dict[str, tuple[Callable[[Path], Any], int]] = {
    "a bit is flipped": (flip, 2),
    "a file was added": (lambda d: (d / "2" / "state" / "extra").write_text("x"), 2),
    "the hashes are no hashes": (lambda d: (d / "2" / HASHES).write_text("[]"), 2),
    "the hashes are of files elsewhere": (
        lambda d: (d / "2" / HASHES).write_text(
            json.dumps({"schema": 1, "algorithm": "xxh3_128", "files": {"../1/_CHECKPOINT_METADATA": [1, "0"]}})
        ),
        2,
    ),
}


@pytest.mark.parametrize("hashed", [True, False], ids=["hashed", "not hashed"])
@pytest.mark.parametrize("damage", [*DAMAGES, *WITH_HASHES])
def test_everybody_refuses_what_is_damaged_and_names_the_step_before(damage: str, hashed: bool, run: Path) -> None:
    change, step = (DAMAGES | WITH_HASHES)[damage]
    if not hashed:
        if damage in WITH_HASHES:
            pytest.skip("hashes alone notice it")
        (run / "checkpoints" / "2" / HASHES).unlink()
    change(run / "checkpoints")
    before = step - 1 if step == 2 else 2 if step == 9 else 1
    damaged, usable = run / "checkpoints" / str(step), run / "checkpoints" / str(before)
    messages = set()
    for read in READERS:
        with pytest.raises(CheckpointError) as raised:
            read(run / "checkpoints")
        messages.add(str(raised.value))
    (message,) = messages
    assert message.startswith(f"checkpoint {damaged} is damaged: ")
    assert f"can be used is {usable}, which is " in message
    assert not (run / "hf").exists()
    # What the message says leads on, also in a folder whose name has a space.
    command = message.partition("to go on from it, run ")[2].partition(", then start")[0]
    assert shlex.quote(str(damaged)) in command
    subprocess.run(command, shell=True, check=True)
    for read in READERS:
        read(run / "checkpoints")


def test_what_is_no_step_is_passed_over(run: Path, params: Any) -> None:
    directory = run / "checkpoints"
    for name in ("²", "٣", "007", "3.damaged", "4.orbax-checkpoint-tmp", "-1", "+5", "6 "):
        (directory / name).mkdir()
        assert step_of(name) is None
    (directory / "3.damaged" / "state").mkdir()
    for read in READERS:
        read(directory)
    assert newest_step(directory) == 2
    found = flatten_dict(restore_parameters(directory))
    np.testing.assert_array_equal(found["norm", "weight"], np.asarray(params["norm"]["weight"]) * 2)


def test_a_checkpoint_may_lie_and_be_called_as_one_likes(run: Path) -> None:
    """Kept under another name, or linked to: it is checked all the same."""
    directory = run / "checkpoints"
    (directory / "2").rename(run / "best")
    (directory / "2").symlink_to(run / "best")
    for read in READERS:
        read(directory)
    assert check(run / "best", step=None) == FileCheck(hashed=True)
    assert len(restore_parameters(run / "best")) == 3
    (run / "best" / "state" / "_METADATA").unlink()
    for path in (run / "best", directory):
        with pytest.raises(CheckpointError, match=r"is damaged: .*_METADATA"):
            restore_parameters(path)


def test_an_earlier_step_is_taken_where_it_is_named(run: Path, params: Any) -> None:
    flip(run / "checkpoints")
    found = flatten_dict(restore_parameters(run / "checkpoints" / "1"))
    np.testing.assert_array_equal(found["norm", "weight"], np.asarray(params["norm"]["weight"]))
    to_hf(run / "checkpoints" / "1", out=run / "hf")


def test_without_hashes_it_is_said_to_be_unverified(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said: list[str] = []
    assert require_whole(find_checkpoint(run / "checkpoints"), say=said.append)
    assert said == []
    flip(run / "checkpoints")
    assert not require_whole(find_checkpoint(run / "checkpoints"), hashes=False, say=said.append)
    (run / "checkpoints" / "2" / HASHES).unlink()
    restore_parameters(run / "checkpoints", say=said.append)
    for text, why in zip(said, ("as asked for", f"no {HASHES}"), strict=True):
        assert text.startswith(f"unverified: checkpoint {run / 'checkpoints' / '2'}: ")
        assert why in text
    arguments = ["to-hf", "--checkpoint", str(run / "checkpoints"), "--out", str(run / "hf")]
    monkeypatch.setattr(sys, "argv", ["tools.convert", *arguments])
    convert.main()
    assert f"no {HASHES}" in capsys.readouterr().err


def test_the_command_checks_hashes_unless_told_otherwise(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flip(run / "checkpoints")
    arguments = ["tools.convert", "to-hf", "--checkpoint", str(run / "checkpoints"), "--out", str(run / "hf")]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as ended:
        convert.main()
    assert ended.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert f"error: checkpoint {run / 'checkpoints' / '2'} is damaged: " in line
    assert f"can be used is {run / 'checkpoints' / '1'}" in line
    monkeypatch.setattr(sys, "argv", [*arguments, "--no-hash-check"])
    convert.main()
    captured = capsys.readouterr()
    assert f"unverified: checkpoint {run / 'checkpoints' / '2'}: its hashes were not checked" in captured.err
    assert f"wrote {run / 'hf'}" in captured.out


def test_a_folder_that_may_not_be_read_is_named(run: Path) -> None:
    """As another user, whom the folder is closed to."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to become somebody else")
    program = (
        "import os, sys; from learner_jax.checkpoints import *; from pathlib import Path; os.seteuid(65534)\n"
        "for path in map(Path, sys.argv[1:]):\n"
        "    try: restore_parameters(path)\n"
        "    except CheckpointError as error: print(error)\n"
    )
    made_by_pytest = [folder for folder in run.parents if folder.stat().st_mode & 0o077 == 0]
    for path in [*made_by_pytest, run, run / "checkpoints"]:
        path.chmod(0o755)
    (run / "checkpoints" / "2").chmod(0)
    closed = run / "closed"
    shutil.copytree(run / "checkpoints", closed / "checkpoints")
    closed.chmod(0)
    done = subprocess.run(
        [sys.executable, "-c", program, str(run / "checkpoints"), str(closed / "checkpoints")],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        check=True,
    )
    first, second = done.stdout.splitlines()
    assert str(run / "checkpoints" / "2") in first
    assert str(closed / "checkpoints") in second
    assert "Permission denied" in first
    assert "Permission denied" in second


# Learners that were ousted.


def test_what_an_ousted_learner_commits_late_does_not_count(run: Path, params: Any) -> None:
    """It saved step 4 while another took over, went on from step 2 and saved step 3."""
    directory = run / "checkpoints"
    save_steps(directory, params, 3, life=2)
    save_steps(directory / "late", params, 4, life=1)
    (directory / "late" / "4").rename(directory / "4")
    assert newest_step(directory) == 3
    found = flatten_dict(restore_parameters(directory))
    np.testing.assert_array_equal(found["norm", "weight"], np.asarray(params["norm"]["weight"]) * 3)
    checkpoints = Checkpoints(directory, keep=9)
    assert next_life(directory, 1) == 3
    assert checkpoints.latest_step() == 3
    assert oust(directory, 3) == [4]
    assert sorted(path.name for path in directory.iterdir() if path.name[0].isdigit()) == ["1", "2", "3", "4.ousted.3"]
    # Before this life has saved anything, an earlier one's step is as good as its own start; in its way it is not.
    assert oust(directory, 3, from_step=3) == [3]
    checkpoints.close()


def test_a_life_that_saved_nothing_does_not_oust_the_one_before(run: Path, params: Any) -> None:
    save_steps(run / "checkpoints", params, 3, 4, life=1)
    checkpoints = Checkpoints(run / "checkpoints", keep=9)
    assert oust(checkpoints.directory, next_life(checkpoints.directory, 2)) == []
    assert checkpoints.latest_step() == 4
    checkpoints.close()


# Proof before anything is forgotten.


def lose_a_chunk(folder: Path) -> None:
    data_file(folder).unlink()


def write_a_later_step(folder: Path) -> None:
    shutil.copytree(folder, folder.parent / "1000")


def move_away(folder: Path) -> None:
    folder.rename(folder.with_name("elsewhere"))


def change_the_manifest(folder: Path) -> None:
    path = folder / "manifest" / "metadata"
    path.write_text(path.read_text().replace('"life": 0', '"life": 1'))


@pytest.mark.parametrize(
    ("happens", "message"),
    [
        (lose_a_chunk, r"chunk .*: expected \d+ bytes in .*No such file"),
        (write_a_later_step, "that would be step 1000 there"),
        (move_away, "holds no checkpoint"),
        (change_the_manifest, "its manifest is not the one that was saved"),
    ],
)
def test_a_checkpoint_that_no_restart_could_use_is_an_error(
    happens: Callable[[Path], None], message: str, params: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = checkpoint_proof.prove

    def late(folder: Path, saved: Any) -> None:
        happens(folder)
        real(folder, saved)

    monkeypatch.setattr(checkpoint_proof, "prove", late)
    checkpoints = Checkpoints(tmp_path / "c", keep=9)
    state = init_state(jax.tree.map(jnp.array, params), make_optimizer(OptimizerSettings()), seed=0)
    checkpoints.save(state, Position(5, 1, 0, ()))
    with pytest.raises(CheckpointError, match=rf"c/5 was committed, but is not what a restart .*: .*{message}"):
        checkpoints.wait()
    checkpoints.close()


def test_every_file_and_folder_is_synced(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: set[str] = set()
    real = os.fsync

    def noted(descriptor: int) -> None:
        synced.add(os.readlink(f"/proc/self/fd/{descriptor}"))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    folder = run / "checkpoints" / "2"
    checkpoint_proof.prove(folder, read_manifest(folder))
    assert synced == {str(path) for path in folder.rglob("*")} | {str(folder), str(folder.parent)}
