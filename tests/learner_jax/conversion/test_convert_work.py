"""What a conversion is safe against: kills, other work, full memory; and where it reads and writes."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from learner_jax.checkpoints import CheckpointError
from learner_jax.contracts import model as hf_names
from learner_jax.conversion.checkpoint_reader import blocks, cut, open_source, stream
from learner_jax.conversion.convert import ConversionError, Watch, from_hf, to_hf, verify
from learner_jax.conversion.work_folder import Settler, WorkError, open_work
from tests.conftest import REPOSITORY
from tests.support.decoders import lively_parameters
from tests.support.forked_python import HOST_JAX, start_python
from tests.support.killed_conversion import ALL
from tests.support.memory_objects import MemoryObjects
from tests.support.model_folders import (
    CONFIG,
    assert_same,
    expected_tensors,
    save_foreign,
    save_learner_checkpoint,
    write_config,
)


@pytest.fixture(scope="module")
def params() -> Any:
    return lively_parameters(CONFIG)


@pytest.fixture(scope="module")
def saved(params: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of the learner's checkpoints, with the model's config kept beside them."""
    folder = save_learner_checkpoint(tmp_path_factory.mktemp("saved") / "checkpoints", params)
    write_config(folder / "source_model")
    return folder


@pytest.mark.parametrize("pieces", [1, 7, ALL])
@pytest.mark.parametrize("command", ["to-hf", "from-hf"])
def test_a_killed_conversion_is_taken_up(command: str, pieces: int, saved: Path, tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    if command == "to-hf":
        shutil.copytree(saved, source)
    else:
        to_hf(saved, out=source)

    def again(target: Path, watch: Watch) -> None:
        if command == "to-hf":
            to_hf(source, out=target, max_shard_bytes=20_000, watch=watch)
        else:
            from_hf(source, out=target, watch=watch)

    with (tmp_path / "output").open("w+b") as output:
        arguments = [str(pieces), command, str(source), str(out)]
        environment = os.environ | HOST_JAX
        process = start_python(
            "tests.support.killed_conversion", arguments, cwd=REPOSITORY, environment=environment, output=output
        )
        assert process.wait(120) == -signal.SIGKILL, Path(output.name).read_text()
    (tmp_path / "output").unlink()
    assert not out.exists()
    said: list[str] = []
    reports: list[tuple[int, int]] = []
    again(out, Watch(progress=lambda done, total: reports.append((done, total)), say=said.append))
    assert "going on with earlier work" in said[0]
    assert reports[0][0] > 0
    assert reports[-1][0] == reports[-1][1]
    again(tmp_path / "whole", Watch())
    assert contents(out) == contents(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source", "whole"]


def contents(folder: Path) -> dict[str, bytes]:
    """Files but those that hold times and hashes over them."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in ("_CHECKPOINT_METADATA", "commit_success.txt", "hashes.json")
    }


def interrupted(saved: Path, out: Path | MemoryObjects, **options: Any) -> None:
    def stop(done: int, total: int) -> None:
        if done > 20_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        to_hf(saved, out=out, watch=Watch(progress=stop), **options)


def test_work_for_another_source_or_setting_begins_afresh(
    saved: Path, params: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(Settler.__init__.__kwdefaults__, "every_bytes", 1)
    source, out = tmp_path / "source", tmp_path / "out"
    shutil.copytree(saved, source)
    interrupted(source, out)
    said: list[str] = []
    interrupted(source, out, dtype="bfloat16")
    changed = jax.tree.map(lambda value: value + 1, params)
    shutil.rmtree(source / "3")
    save_learner_checkpoint(source, changed)
    to_hf(source, out=out, dtype="bfloat16", watch=Watch(say=said.append))
    assert len(said) == 1
    assert "beginning afresh: source or settings differ" in said[0]
    assert_same(load_file(out / "model.safetensors"), expected_tensors(changed, "bfloat16"))


def test_two_at_once_is_an_error(saved: Path, tmp_path: Path) -> None:
    with open_work(tmp_path / "out", "mine", lambda text: None), pytest.raises(WorkError, match="another process is"):
        to_hf(saved, out=tmp_path / "out")


def test_a_journal_that_was_cut_loses_only_its_last_piece(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with contextlib.suppress(KeyboardInterrupt), open_work(out, "mine", lambda text: None) as work:
        work.finish(["1", "2", "30"])
        raise KeyboardInterrupt
    journal = tmp_path / ".out.converting" / "journal"
    journal.write_text(journal.read_text()[:-2])
    with open_work(out, "mine", lambda text: None) as work:
        assert work.finished == {"1", "2"}
        work.finish(["30"])
        assert journal.read_text().split("\n")[1:] == ["1", "2", "30", ""]


def test_a_result_gets_its_name_at_once_or_not_at_all(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = os.replace

    def killed(source: Path, target: Path) -> None:
        if Path(source).name == "result":
            raise KeyboardInterrupt
        rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", killed)
        with pytest.raises(KeyboardInterrupt):
            to_hf(saved, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    to_hf(saved, out=tmp_path / "out")
    assert verify(saved, tmp_path / "out", logprobs=False).problems == ()


def test_a_failure_before_anything_is_written_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), open_work(tmp_path / "out", "mine", lambda text: None):
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


MEMORY = """
import json, sys
from pathlib import Path
from learner_jax.runtime.allocator import keep_freed_chunks
from learner_jax.conversion import convert

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))

keep_freed_chunks()
Path("/proc/self/clear_refs").write_text("5")
before = peak()
if sys.argv[1] == "to-hf":
    convert.to_hf(sys.argv[2], out=sys.argv[3], dtype="bfloat16")
else:
    convert.from_hf(sys.argv[2], out=sys.argv[3])
print(peak() - before)
"""


def test_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    """A model of 530 MB in chunks of 8 MB; about half of it in memory at most, the tool's own floor included.

    The floor is what threads of the store hold at a time: 80 MB on a quiet machine, 210 MB were seen on a busy one.
    """
    shape = {"hidden_size": 1024, "intermediate_size": 2048, "num_hidden_layers": 20, "vocab_size": 512}
    shape |= {"num_attention_heads": 8, "num_key_value_heads": 4}
    config = replace(CONFIG, num_layers=20, hidden_size=1024, intermediate_size=2048, vocab_size=512)
    config = replace(config, num_heads=8, num_kv_heads=4)
    flat = {
        row.path: np.broadcast_to(np.float32(0.5), (20, *row.shape) if row.stacked else row.shape)
        for row in hf_names.parameters(config)
    }
    assert sum(value.nbytes for value in flat.values()) > 530e6
    save_foreign(tmp_path / "c", flat, lambda shape: (1, *shape[1:]) if len(shape) == 3 else shape, compressor=None)
    write_config(tmp_path / "source_model", **shape)
    steps = [("to-hf", "c", "hf"), ("from-hf", "hf", "again")]
    for command, source, out in steps:
        arguments = [command, str(tmp_path / source), str(tmp_path / out)]
        done = subprocess.run(
            [sys.executable, "-c", MEMORY, *arguments], cwd=REPOSITORY, check=True, capture_output=True, text=True
        )
        assert int(done.stdout.splitlines()[-1]) < 270e6, command
        shutil.rmtree(tmp_path / source)


def test_chunks_are_not_cut_by_blocks() -> None:
    """Every block is a union of whole chunks, for every order in which a limit is reached."""
    shape, chunk = (5, 37, 41), (2, 8, 10)
    for limit in (0, 4 * 2 * 8 * 25, 4 * 2 * 8 * 41, 4 * 2 * 11 * 41, 4 * 2 * 24 * 41, 4 * 3 * 37 * 41, 1 << 30):
        covered = np.zeros(shape, np.int32)
        for index in cut(shape, chunk, 4, limit):
            covered[index] += 1
            lengths = [part.stop - part.start for part in index]
            cut_at = max((dim for dim in range(3) if lengths[dim] < shape[dim]), default=0)
            assert all(lengths[dim] <= chunk[dim] for dim in range(cut_at)), "not contiguous beyond a chunk"
            for part, size, whole in zip(index, chunk, shape, strict=True):
                assert part.start % size == 0
                assert part.stop % size == 0 or part.stop == whole
            assert covered[index].nbytes <= max(limit, 4 * 2 * 8 * 10)
        assert (covered == 1).all()


def test_blocks_are_read_ahead_while_one_is_used(saved: Path) -> None:
    """The array handed out stays as it is until the next is asked for."""
    with open_source(saved, CONFIG) as source:
        jobs = [(n, block) for n, block in enumerate(blocks(source, CONFIG))]
        for number, block, values in stream(source, jobs):
            copy = values.copy()
            time.sleep(0.002)
            np.testing.assert_array_equal(values, copy, err_msg=str(number))
            np.testing.assert_array_equal(source.arrays[block.row.path][block.index].read().result(), copy)


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> MemoryObjects:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return MemoryObjects("s3://bucket/models")


def test_a_result_goes_to_storage_file_by_file(bucket: MemoryObjects, stories_model: Path, tmp_path: Path) -> None:
    checkpoint, largest = tmp_path / "checkpoint", 0
    from_hf(stories_model, out=checkpoint)
    put_file = bucket.put_file

    def watched(key: str, path: Path) -> None:
        nonlocal largest
        largest = max(largest, sum(p.stat().st_blocks * 512 for p in tmp_path.rglob("*.safetensors")))
        put_file(key, path)

    bucket.put_file = watched  # type: ignore[method-assign]
    to_hf(checkpoint, out=bucket, max_shard_bytes=600_000)
    assert 0 < largest < 1_300_000  # never the whole model of 2.7 MB on the local disk
    found = {}
    for name, content in bucket.held.items():
        (tmp_path / name).write_bytes(content)
        found |= load_file(tmp_path / name) if name.endswith(".safetensors") else {}
    assert_same(found, load_file(stories_model / "model.safetensors"))
    assert bucket.held["tokenizer.json"] == (stories_model / "tokenizer.json").read_bytes()
    assert list(bucket.held)[-1] == "config.json"
    assert not any((tmp_path / "cache").rglob("*.safetensors"))
    with pytest.raises(ConversionError, match="s3://bucket/models is not empty"):
        to_hf(checkpoint, out=bucket)


def test_what_makes_a_checkpoint_whole_is_sent_last(bucket: MemoryObjects, stories_model: Path, tmp_path: Path) -> None:
    from_hf(stories_model, out=bucket)
    for name, content in bucket.held.items():
        (tmp_path / "fetched" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "fetched" / name).write_bytes(content)
    assert verify(tmp_path / "fetched", stories_model, logprobs=False).problems == ()
    last = [name for name in bucket.held if name.endswith(("commit_success.txt", "_CHECKPOINT_METADATA"))]
    assert len(last) > 1
    assert sorted(list(bucket.held)[-len(last) :]) == sorted(last)


def test_a_stopped_upload_goes_on(bucket: MemoryObjects, saved: Path, tmp_path: Path) -> None:
    """Also where the checkpoint's folder is another copy of the same."""
    sent: list[str] = []
    put_file = bucket.put_file

    def counted(key: str, path: Path) -> None:
        sent.append(key)
        put_file(key, path)

    bucket.put_file = counted  # type: ignore[method-assign]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(Settler.__init__.__kwdefaults__, "every_bytes", 1)
        interrupted(saved, bucket, max_shard_bytes=10_000, identity="the same")
    first = sent.copy()
    assert first
    shutil.copytree(saved, tmp_path / "again")
    to_hf(tmp_path / "again", out=bucket, max_shard_bytes=10_000, identity="the same")
    assert len(sent) == len(set(sent))  # none twice
    assert set(first) < set(sent)


def test_a_url_is_no_folder(saved: Path, tmp_path: Path) -> None:
    for call in (
        lambda: to_hf("s3://bucket/run", out=tmp_path / "a"),
        lambda: to_hf(saved, out="s3://bucket/a"),
        lambda: from_hf("s3://bucket/model", out=tmp_path / "a"),
        lambda: verify(saved, "s3://bucket/model"),
    ):
        with pytest.raises((ConversionError, CheckpointError), match="s3://bucket/.* is a URL, expected a folder"):
            call()
    assert not list(tmp_path.iterdir())
