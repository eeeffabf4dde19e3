"""The queue's benchmark: that every side takes every trajectory through, and that its figures can fail."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import pytest

from learner_jax.contracts.weights import decode_group, encode_group
from tools.bench import BenchmarkError
from tools.bench.__main__ import main
from tools.bench.queue import command as queue
from tools.bench.queue import sides as queue_sides
from tools.bench.queue import streams as queue_streams
from tools.bench.queue.command import Sample
from tools.bench.timing import Spread

SHORT = ["--kilobytes", "2", "--batch", "3", "--batches", "2", "--rounds", "2"]
SIDES = ["sqlite", "disk", "codec"]


def test_it_runs_and_writes_what_it_prints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "queue.json"
    status = main(["queue", *SHORT, "--sides", *SIDES, "--directory", str(tmp_path), "--json", str(out)])
    printed = capsys.readouterr()
    assert status == 0, printed.err
    rows = json.loads(out.read_text())["results"]["rows"]
    assert [row["side"] for row in rows] == SIDES
    assert set(rows[0]["p99_ms"]) == {"put", "lease", "mark_trained", "acknowledge"}
    assert rows[1]["of_disk"]["median"] == 1.0
    assert rows[0]["of_peer"] is None
    streams = json.loads(out.read_text())["results"]["streams"]
    assert [row["side"] for row in streams] == SIDES[:2]
    assert streams[0]["trajectories_per_s"]["median"] > 0
    assert "of the disk's throughput; at least 0.5 is the aim" in printed.out
    assert list(tmp_path.iterdir()) == [out]


def test_trajectories_have_the_size_that_was_asked_for() -> None:
    groups = queue_sides.named(queue_sides.trajectories(2, 100_000), [4, 5])
    sizes = [len(encode_group(group)) for group in groups]
    assert all(abs(size - 100_000) < 1000 for size in sizes)
    assert [decode_group(encode_group(group))[0].group_id for group in groups] == ["bench/0/4", "bench/0/5"]


def test_a_side_that_loses_something_is_noticed(tmp_path: Path) -> None:
    side = queue_sides.WeirSide(str(tmp_path / "state.db"))
    indices = side.prepare(3)
    groups = queue_sides.named(queue_sides.trajectories(3, 500), indices)
    side.take(indices, groups)
    with pytest.raises(BenchmarkError, match="gave back 0 of 3 groups"):
        side.take(indices, groups)  # known already
    side.close()


def test_a_missing_peer_is_told_with_the_way_to_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "persistqueue", None)
    with pytest.raises(BenchmarkError, match="pip install persist-queue"):
        queue_sides.PersistQueueSide(tmp_path, whole=False)


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.filterwarnings("ignore")
def test_the_peer_takes_them_through_too(tmp_path: Path, whole: bool) -> None:
    pytest.importorskip("persistqueue")
    side = queue_sides.PersistQueueSide(tmp_path, whole=whole)
    indices = side.prepare(3)
    assert set(side.take(indices, queue_sides.named(queue_sides.trajectories(3, 500), indices))) == {
        "put",
        "lease",
        "acknowledge",
    }
    assert side._queue.qsize() == 0
    side.close()


def test_a_stream_ends_with_everything_acknowledged(tmp_path: Path) -> None:
    with queue.streaming("sqlite", tmp_path, batch=3, num_bytes=100_000) as stream:
        assert isinstance(stream, queue_streams.WeirStream)
        for _ in range(2):
            assert stream.through([stream.prepare(3) for _ in range(2)]) > 0
        assert stream.queue.admin.progress().num_acknowledged == 12
        assert stream.queue.blobs is not None
        assert list(stream.queue.blobs.files()) == []
        stream._worker.send([])
        with pytest.raises(BenchmarkError, match="sent ready, expected opened"):
            stream._receive("opened")
        stream._worker.send("go")
        stream._receive("done")


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.filterwarnings("ignore")
def test_the_peer_streams_too(tmp_path: Path, whole: bool) -> None:
    pytest.importorskip("persistqueue")
    stream = queue_streams.PersistQueueStream(tmp_path, whole=whole, num_bytes=500, batch=3)
    assert stream.through([stream.prepare(3) for _ in range(2)]) > 0
    assert stream._queue.qsize() == 0
    stream.close()


def test_the_verdicts_can_fail() -> None:
    fast = Spread(0.6, 0.5, 0.7)
    row = queue.Row("sqlite", fast, fast, of_disk=fast, of_peer=Spread(4, 4, 4), p99_ms={})
    assert [line.rpartition(" ")[2] for line in queue.verdicts(row)] == ["met", "missed"]
    slow = dataclasses.replace(row, of_disk=Spread(0.4, 0.4, 0.4), of_peer=Spread(5, 5, 5))
    assert [line.rpartition(" ")[2] for line in queue.verdicts(slow)] == ["missed", "met"]


def test_volume_runs_and_sees_growth(tmp_path: Path) -> None:
    samples, _ = queue.volume("sqlite", tmp_path, 400, batch=4, num_bytes=100_000, num_samples=8)
    assert samples[-1].count == 400
    assert max(sample.database_bytes for sample in samples) < 20e6
    assert 400_000 <= max(sample.blob_bytes for sample in samples) < 15e6
    steady = [Sample(i, 100_000_000, 5, 1000, 1000) for i in range(8)]
    assert queue.volume_verdict("sqlite", steady, 1.0, num_bytes=10).endswith("steady")
    leaks = [dataclasses.replace(sample, num_files=5 + sample.count) for sample in steady]
    told = queue.volume_verdict("sqlite", leaks, 1.0, num_bytes=10**9)
    assert told.endswith("memory +0.0%, open files +53.3%, database +0.0%, payload files +0.0%: growing")
    grows = [dataclasses.replace(sample, rss_bytes=(100 + 5 * sample.count) * 10**6) for sample in steady]
    assert queue.volume_verdict("sqlite", grows, 1.0, num_bytes=10**9).endswith("files +0.0%: growing")
    keeps = [dataclasses.replace(sample, database_bytes=10**6 * sample.count) for sample in steady]
    assert queue.volume_verdict("sqlite", keeps, 1.0, num_bytes=10**6).endswith("growing")
    assert queue.volume_verdict("sqlite", keeps, 1.0, num_bytes=10**9).endswith("steady")  # below 1 % of what passed
