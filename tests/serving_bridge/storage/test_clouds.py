"""Google's and Azure's object storage, on servers of their protocols: as S3, faults included."""

from __future__ import annotations

from pathlib import Path

import pytest

from serving_bridge.storage import FsspecObjects, StorageError, StorageSetupError, StorageTimeouts
from tests.support.clouds import SECRET, Cloud, connection_string
from tests.support.object_stores import (
    assert_a_second_one_is_refused,
    assert_only_one_of_many_makes,
    assert_what_is_written_is_read_listed_and_deleted,
)
from tests.support.s3 import Fault

#: one server of each kind for all tests on it
pytest_plugins = ["tests.support.clouds_fixtures"]

TIMEOUTS = StorageTimeouts(give_up_s=3.0, connect_s=0.5, read_s=0.5)


@pytest.fixture
def objects(cloud: Cloud) -> FsspecObjects:
    return FsspecObjects(cloud.url, timeouts=TIMEOUTS, sleep=lambda seconds: None)


def test_what_is_written_is_read_listed_and_deleted(objects: FsspecObjects, tmp_path: Path) -> None:
    assert_what_is_written_is_read_listed_and_deleted(objects, tmp_path)


def test_only_one_of_many_makes_an_object_and_the_probe_knows_it(objects: FsspecObjects) -> None:
    assert objects.probe()
    assert objects.list() == {}
    assert_only_one_of_many_makes(objects)


def test_a_conditional_write_whose_answer_was_lost_has_succeeded(cloud: Cloud, objects: FsspecObjects) -> None:
    cloud.server.faults.append(Fault("lost answer", cloud.writes, times=1))
    assert_a_second_one_is_refused(objects)


@pytest.mark.parametrize("kind", ["503", "truncate"])
def test_a_read_that_fails_is_tried_again_by_weir_alone(cloud: Cloud, objects: FsspecObjects, kind: str) -> None:
    objects.put("key", b"content")
    cloud.server.faults.append(Fault(kind, "GET", times=2))
    cloud.server.requests.clear()
    assert objects.get("key", max_bytes=100) == b"content"
    assert cloud.server.count("GET") == 3


def test_a_write_that_never_succeeds_ends_in_time_with_one_clear_error(cloud: Cloud) -> None:
    now = [0.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    objects = FsspecObjects(cloud.url, timeouts=TIMEOUTS, sleep=sleep, clock=lambda: now[0])
    cloud.server.faults.append(Fault("503", cloud.writes))
    with pytest.raises(StorageError, match=rf"{cloud.url} failed at writing key: [0-9]+ tries in ") as caught:
        objects.put("key", b"x")
    assert 3 <= cloud.server.count(cloud.writes) <= 12
    assert now[0] <= TIMEOUTS.give_up_s
    assert caught.value.can_heal
    assert SECRET not in str(caught.value)


def test_what_no_further_try_changes_is_told_at_once(cloud: Cloud, objects: FsspecObjects) -> None:
    scheme = cloud.url.partition("://")[0]
    missing = FsspecObjects(f"{scheme}://not-there/run", timeouts=TIMEOUTS)
    for work in (lambda: missing.put("key", b""), lambda: missing.put_new("key", b""), missing.probe):
        with pytest.raises(StorageSetupError, match="there is no such (bucket|container): make it, or correct the URL"):
            work()
    cloud.server.faults.append(Fault("403", cloud.writes))
    cloud.server.requests.clear()
    with pytest.raises(StorageSetupError, match="credentials were refused: look at (GOOGLE_|AZURE_)") as caught:
        objects.put("key", b"x")
    assert cloud.server.count(cloud.writes) == 1
    assert SECRET not in str(caught.value)


def test_a_wrong_key_of_azures_is_told_without_it(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    if not cloud.url.startswith("az:"):
        pytest.skip("the server of Google's protocol looks at no credentials")
    wrong = SECRET[::-1].replace("=", "A") + "=="
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", connection_string(cloud.server.url, wrong[-44:]))
    with pytest.raises(StorageSetupError, match="credentials were refused: look at AZURE_") as caught:
        FsspecObjects(cloud.url, timeouts=TIMEOUTS).put("key", b"x")
    assert wrong not in str(caught.value)
    monkeypatch.delenv("AZURE_STORAGE_CONNECTION_STRING")
    with pytest.raises(StorageSetupError, match="set AZURE_STORAGE_CONNECTION_STRING, or AZURE_STORAGE_ACCOUNT_NAME"):
        FsspecObjects(cloud.url, timeouts=TIMEOUTS).put("key", b"x")
