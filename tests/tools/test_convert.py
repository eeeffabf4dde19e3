"""`tools.convert` to and from object storage, on a real S3 server; what it converts is tested with the conversion."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

from learner_jax.conversion import from_hf
from learner_jax.runtime import WeirError
from serving_bridge.storage import CheckpointObjects, FsspecObjects
from tests.support.model_folders import assert_same
from tests.support.s3 import CREDENTIALS, S3, Fault
from tools.assembly import checkpoint_here
from tools.convert import main

#: one server for all tests on it
pytest_plugins = ["tests.support.s3_fixtures"]


@pytest.fixture(autouse=True)
def own_places(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    monkeypatch.setattr("tempfile.tempdir", None)
    (tmp_path / "temporary").mkdir()


@pytest.fixture(scope="module")
def made(stories_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of checkpoints with one of step 0."""
    folder = tmp_path_factory.mktemp("made") / "checkpoints"
    from_hf(stories_model, out=folder)
    return folder


@pytest.fixture
def convert(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs the command; returns what it said."""

    def run(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["convert", *map(str, arguments)])
        main()
        return "".join(capsys.readouterr())

    return run


@pytest.fixture
def refused(convert: Any, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs the command, which ends with an error; returns its line."""

    def run(*arguments: str) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            convert(*arguments)
        assert ended.value.code not in (0, None)
        text = capsys.readouterr().err
        assert not any(secret in text for secret in CREDENTIALS.values() if "secret" in secret)
        return text.strip().splitlines()[-1]

    return run


def test_both_ways_between_places_in_storage(
    s3: S3, convert: Any, refused: Any, stories_model: Path, tmp_path: Path
) -> None:
    objects = FsspecObjects("s3://bucket")
    for path in stories_model.iterdir():
        objects.put_file(f"start/{path.name}", path)
    bytes_alone = ("--verify", "--no-logprobs")
    s3.faults.append(Fault("503", "PUT", times=2))
    assert "verified: 47 tensors" in convert(
        "from-hf", "--model", "s3://bucket/start", "--out", "s3://bucket/made", *bytes_alone
    )
    s3.faults.append(Fault("500", "GET", times=2))
    shards = ("--max-shard-size", "600KB")
    assert "verified: 47 tensors of s3://bucket/hf are those of s3://bucket/made" in convert(
        "to-hf", "--checkpoint", "s3://bucket/made", "--out", "s3://bucket/hf", *shards, *bytes_alone
    )
    found: dict[str, Any] = {}
    for key in objects.list("hf/"):
        path = tmp_path / key.split("/")[1]
        path.write_bytes(objects.get(key, max_bytes=1 << 24))
        found |= load_file(path) if path.suffix == ".safetensors" else {}
    assert_same(found, load_file(stories_model / "model.safetensors"))
    assert not any((tmp_path / "temporary").iterdir())
    assert not any((tmp_path / "cache").rglob("*.safetensors"))
    assert "s3://bucket/hf is not empty" in refused(
        "to-hf", "--checkpoint", "s3://bucket/made", "--out", "s3://bucket/hf"
    )


def test_the_newest_copy_of_a_run_and_that_of_a_step(
    s3: S3, convert: Any, refused: Any, stories_model: Path, made: Path, tmp_path: Path
) -> None:
    """What `store.checkpoints` holds: files under names of their own, and manifests."""
    copies = CheckpointObjects(FsspecObjects("s3://bucket/copies"), run="run", keep=2)
    copies.keep(made / "0", step=0, life=1)
    model = ("--model", str(stories_model))
    for number, source in enumerate(("s3://bucket/copies", "s3://bucket/copies/0")):
        convert("to-hf", "--checkpoint", source, "--out", str(tmp_path / str(number)), *model)
        assert_same(
            load_file(tmp_path / str(number) / "model.safetensors"), load_file(stories_model / "model.safetensors")
        )
    assert "s3://bucket/copies holds no checkpoint of step 7; the steps of the copies there: 0" in refused(
        "to-hf", "--checkpoint", "s3://bucket/copies/7", "--out", "s3://bucket/other", *model
    )
    objects = FsspecObjects("s3://bucket/copies")
    array = next(key for key in objects.list("data/") if "embed" in key and not key.endswith(".zarray"))
    objects.put(array, b"x" * objects.list()[array])
    said = refused("to-hf", "--checkpoint", "s3://bucket/copies", "--out", "s3://bucket/other", *model)
    assert "the copy of checkpoint 0 in s3://bucket/copies is damaged" in said
    assert not FsspecObjects("s3://bucket/other").list()


def test_of_several_checkpoints_the_newest_is_taken(
    s3: S3, convert: Any, refused: Any, made: Path, tmp_path: Path
) -> None:
    """Folders of steps as `aws s3 sync` copies them; damage is told with the URL, and of no others beside it."""
    objects = FsspecObjects("s3://bucket/synced")
    for path in (path for path in made.rglob("*") if path.is_file()):
        name = path.relative_to(made).as_posix()
        objects.put_file(name, path)
        if not name.startswith("source_model/"):
            objects.put_file(name.replace("0/", "9/", 1), path)
    objects.put("11", b"a file that is called like a step")
    s3.requests.clear()
    convert("to-hf", "--checkpoint", "s3://bucket/synced", "--out", str(tmp_path / "hf"))
    arrays = [target for method, target in s3.requests if method == "GET" and "/state/params" in target]
    assert arrays
    assert all(target.startswith("/bucket/synced/9/") for target in arrays)
    array = next(key for key in objects.list("9/state/") if "embed" in key and not key.endswith(".zarray"))
    objects.put(array, b"x" * objects.list()[array])
    said = refused("to-hf", "--checkpoint", "s3://bucket/synced", "--out", str(tmp_path / "other"))
    assert said.startswith("error: checkpoint s3://bucket/synced/9 is damaged: s3://bucket/synced/9/state/")
    assert "before it" not in said


def test_what_can_not_be_is_one_clear_error(
    s3: S3, refused: Any, stories_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = ("--out", str(tmp_path / "out"))
    for arguments, said in (
        (("to-hf", "--checkpoint", "s3://bucket/none", *out), "s3://bucket/none holds no checkpoint; expected one"),
        (("to-hf", "--checkpoint", "s3://none/run", *out), "there is no such bucket"),
        (("from-hf", "--model", "s3://bucket/none", *out), "s3://bucket/none holds no config.json"),
        (("from-hf", "--model", "s3://key:test-secret-that-must-not-be-told@bucket/x", *out), "holds credentials"),
        (("from-hf", "--model", str(stories_model), "--out", "nope://bucket/x"), "nope://bucket/x"),
        (("from-gguf", "--file", "s3://bucket/a.gguf", *out), "from-gguf works on this machine's disks"),
        (("verify", "--checkpoint", "s3://bucket/none", "--hf", str(stories_model)), "holds no checkpoint"),
    ):
        assert said in refused(*arguments), arguments
    assert not (tmp_path / "out").exists()
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setattr("serving_bridge.storage.objects.StorageTimeouts.__init__.__defaults__", (0.5, 0.5, 0.5))
    said = refused("to-hf", "--checkpoint", "s3://bucket/run", *out)
    assert "s3://bucket/run failed at listing it" in said
    assert "is it reachable from here?" in said


class _StatusError(WeirError):
    """Has more to tell than a message."""

    def __init__(self, message: str, *, status: int) -> None:
        super().__init__(message)
        self.status = status


def test_an_error_about_a_passing_copy_tells_the_url_and_stays_what_it_is(s3: S3, made: Path) -> None:
    objects = FsspecObjects("s3://bucket/named")
    for path in (path for path in made.rglob("*") if path.is_file()):
        objects.put_file(path.relative_to(made).as_posix(), path)
    with pytest.raises(_StatusError) as caught, checkpoint_here("s3://bucket/named/0") as here:
        raise _StatusError(f"{here.folder}/state is odd", status=7)
    assert (str(caught.value), caught.value.status) == ("s3://bucket/named/0/state is odd", 7)
