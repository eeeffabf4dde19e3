"""Object storage through fsspec, on a real S3 server: what is written is read, faults are waited out or told."""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from learner_jax.runtime import disk_failure
from serving_bridge.processes import free_port
from serving_bridge.storage import (
    FsspecObjects,
    StorageError,
    StorageSetupError,
    StorageTimeouts,
    is_url,
    storage_variables,
    unshared,
    url_problem,
)
from serving_bridge.storage.providers import provider_of
from tests.support.object_stores import (
    assert_a_second_one_is_refused,
    assert_only_one_of_many_makes,
    assert_what_is_written_is_read_listed_and_deleted,
)
from tests.support.s3 import CREDENTIALS, S3, Fault

#: one server for all tests on it
pytest_plugins = ["tests.support.s3_fixtures"]

URL = "s3://bucket/run"
TIMEOUTS = StorageTimeouts(give_up_s=3.0, connect_s=0.5, read_s=0.5)


@pytest.fixture
def objects(s3: S3) -> FsspecObjects:
    return FsspecObjects(URL, timeouts=TIMEOUTS, sleep=lambda seconds: None)


def test_what_is_written_is_read_listed_and_deleted(s3: S3, objects: FsspecObjects, tmp_path: Path) -> None:
    assert_what_is_written_is_read_listed_and_deleted(objects, tmp_path)
    assert {key["Key"] for key in s3.client().list_objects_v2(Bucket="bucket")["Contents"]} == {
        "run/a2", "run/a/file.bin",
    }  # fmt: skip


@pytest.mark.parametrize("key", ["", "/a", "a/", "a//b", "../a", "a/../b", "a/./b", "a b", "a?x", "a\n"])
def test_a_key_leads_nowhere_else(objects: FsspecObjects, key: str) -> None:
    with pytest.raises(ValueError, match="is no key of an object"):
        objects.put(key, b"")


def test_only_one_of_many_makes_an_object(objects: FsspecObjects) -> None:
    assert_only_one_of_many_makes(objects)


def test_a_conditional_write_whose_answer_was_lost_has_succeeded(s3: S3, objects: FsspecObjects) -> None:
    s3.faults.append(Fault("lost answer", "PUT", times=1))
    assert_a_second_one_is_refused(objects)


def test_where_storage_knows_no_conditional_writes_what_is_there_stays(s3: S3, objects: FsspecObjects) -> None:
    s3.faults.append(Fault("501", "PUT"))
    assert_a_second_one_is_refused(objects)
    assert not objects.probe()


def test_a_probe_leaves_nothing_and_knows_conditional_writes(s3: S3, objects: FsspecObjects) -> None:
    assert objects.probe()
    assert objects.list() == {}


def reading(objects: FsspecObjects) -> bytes:
    return objects.get("key", max_bytes=100)


def listing(objects: FsspecObjects) -> bytes:
    return repr(objects.list()).encode()


def measuring(objects: FsspecObjects) -> bytes:
    return repr(objects.size("key")).encode()


@pytest.mark.parametrize("kind", ["503", "500", "reset", "truncate", "hang"])
@pytest.mark.parametrize(
    ("method", "work", "expected"),
    [("GET", reading, b"content"), ("GET", listing, b"{'key': 7}"), ("HEAD", measuring, b"7")],
    ids=["get", "list", "size"],
)
def test_a_read_that_fails_is_tried_again(
    s3: S3, objects: FsspecObjects, kind: str, method: str, work: Callable[[FsspecObjects], bytes], expected: bytes
) -> None:
    if (kind, method) == ("truncate", "HEAD") or (kind == "hang" and work is not reading):
        pytest.skip("the same as another case")
    objects.put("key", b"content")
    s3.faults.append(Fault(kind, method, times=2 if kind != "hang" else 1))
    s3.requests.clear()
    assert work(objects) == expected
    assert s3.count(method) >= s3.faults[0].times + 2


@pytest.mark.parametrize("kind", ["503", "reset", "lost answer"])
def test_a_write_that_fails_is_tried_again(s3: S3, objects: FsspecObjects, kind: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"123")
    s3.faults.append(Fault(kind, "PUT", times=2))
    objects.put_file("key", tmp_path / "file")
    assert objects.get("key", max_bytes=9) == b"123"
    assert s3.count("PUT") == 3


@pytest.mark.parametrize("kind", ["503", "reset"])
def test_a_fault_that_stays_ends_in_time_with_one_clear_error(s3: S3, kind: str) -> None:
    now = [0.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    objects = FsspecObjects(URL, timeouts=TIMEOUTS, sleep=sleep, clock=lambda: now[0])
    s3.faults.append(Fault(kind, "PUT"))
    with pytest.raises(StorageError) as caught:
        objects.put("key", b"x")
    tries = re.search(rf"{URL} failed at writing key: ([0-9]+) tries in ", str(caught.value))
    assert tries
    assert s3.count("PUT") in (int(tries[1]), 2 * int(tries[1])), "aiohttp asks once more where it was reset"
    assert "store.storage_timeout_s = 3" in str(caught.value)
    assert 3 <= int(tries[1]) <= 12
    assert now[0] <= TIMEOUTS.give_up_s
    assert caught.value.can_heal
    assert disk_failure(caught.value) is None, "a failing disk would be told of"
    assert "secret" not in str(caught.value)


def test_wrong_credentials_are_told_at_once(s3: S3, objects: FsspecObjects) -> None:
    s3.faults.append(Fault("403", "PUT"))
    with pytest.raises(StorageSetupError, match="the credentials were refused: look at AWS_ACCESS_KEY_ID") as caught:
        objects.put("key", b"x")
    assert s3.count("PUT") == 1
    assert not caught.value.can_heal
    assert not any(secret in str(caught.value) for secret in CREDENTIALS.values() if "test" in secret)


@pytest.mark.parametrize("work", [lambda o: o.list(), lambda o: o.get("k", max_bytes=1), lambda o: o.put("k", b"")])
def test_a_missing_bucket_is_told_at_once(s3: S3, work: Callable[[FsspecObjects], object]) -> None:
    with pytest.raises(StorageSetupError, match="there is no such bucket: make it, or correct the URL"):
        work(FsspecObjects("s3://other/run", timeouts=TIMEOUTS))


def test_no_credentials_are_told_at_once(s3: S3, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in CREDENTIALS:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(StorageSetupError, match="NoCredentialsError: .* set AWS_ACCESS_KEY_ID"):
        FsspecObjects(URL, timeouts=TIMEOUTS).put("key", b"")
    assert s3.requests == []


def test_an_endpoint_that_is_down_is_waited_for_and_then_told(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    with pytest.raises(StorageError, match=r"tries in .* EndpointConnectionError: .*is it\s+reachable from here"):
        FsspecObjects(URL, timeouts=StorageTimeouts(give_up_s=0.5, connect_s=0.2)).put("key", b"")


def test_an_upload_in_pieces_that_fails_leaves_no_object(
    s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(provider_of("s3").upload, "chunksize", 5 << 20)
    path = tmp_path / "big"
    path.write_bytes(b"")
    os.truncate(path, 11 << 20)
    objects = FsspecObjects(URL, timeouts=StorageTimeouts(give_up_s=0.1))
    s3.faults.append(Fault("503", "PUT", "partNumber=2"))
    with pytest.raises(StorageError, match=r"failed at writing big \(11534336 bytes\)"):
        objects.put_file("big", path)
    assert objects.list() == {}
    assert "Uploads" not in s3.client().list_multipart_uploads(Bucket="bucket"), "parts are left, which cost money"
    s3.faults.clear()
    objects.put_file("big", path)
    assert objects.list() == {"big": 11 << 20}


# Where JAX was imported before, it warns of forks; this child ends without it.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore:os.fork")
def test_another_process_after_a_fork_asks_by_itself(objects: FsspecObjects) -> None:
    objects.put("key", b"parent")
    reading_end, writing_end = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writing_end, objects.get("key", max_bytes=100))
        os._exit(0)
    os.close(writing_end)
    with os.fdopen(reading_end, "rb") as pipe:
        assert pipe.read() == b"parent"
    os.waitpid(child, 0)


@pytest.mark.parametrize(("url", "package"), [("gs://bucket/x", "gcsfs"), ("az://container/x", "adlfs")])
def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, url: str, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    loaded = importlib.import_module("fsspec.registry")._registry
    monkeypatch.delitem(loaded, url.partition("://")[0], raising=False)
    with pytest.raises(StorageSetupError, match=f"{url} needs {package}: pip install {package}"):
        FsspecObjects(url)


def test_a_scheme_that_nobody_knows_is_told() -> None:
    with pytest.raises(StorageSetupError, match="nonsense://bucket/x: Protocol not known"):
        FsspecObjects("nonsense://bucket/x")


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("s3://bucket", None),
        ("s3://bucket/a/b-1.2_3", None),
        ("s3://key:secret@bucket/a", "holds credentials"),
        ("s3://bucket/a?key=secret", "holds credentials"),
        ("s3://", "names no place"),
        ("s3:///a", "names no place"),
        ("s3://bucket/a b", "names no place"),
        ("s3://bucket/a//b", "names no place"),
    ],
)
def test_a_url_is_a_bucket_and_a_prefix_without_secrets(url: str, problem: str | None) -> None:
    found = url_problem(url)
    assert (found is None) == (problem is None)
    if problem is not None:
        assert problem in str(found)
        assert "secret" not in str(found)
        with pytest.raises(StorageSetupError, match=problem):
            FsspecObjects(url)


def test_what_is_a_url_and_which_variables_go_with_it() -> None:
    assert [is_url(text) for text in ("s3://b", "gs://b/x", "/a/b", "a", "", "C://x", "a://")] == [
        True, True, False, False, False, False, True,
    ]  # fmt: skip
    assert "every process" in str(unshared("memory://x"))
    assert unshared("s3://x") is None
    given = {"AWS_SECRET_ACCESS_KEY": "s", "GOOGLE_APPLICATION_CREDENTIALS": "f", "AZURE_TENANT_ID": "t"}
    others = {"HOME": "h", "OPENAI_API_KEY": "k", "AZURE_OPENAI_API_KEY": "a"}
    assert storage_variables(given | others) == given
