"""`python -m tools.queue` on real queues: what it shows, what it changes, what it refuses."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from configs.load import load_config, save_config
from serving_bridge.queue.bounds import QueueBounds
from serving_bridge.queue.queue import TrajectoryQueue
from tests.conftest import REPOSITORY
from tests.support.queue_engines import PACE, Place, lease, place, put, train
from tools.assembly import build_queue, run_paths
from tools.queue import main

__all__ = ["place"]  # a fixture


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture
def lived(place: Place) -> Place:
    """A queue in the middle of a run: something in every state."""
    queue = place.open(clock=time.time, consumer="host-a:7", lease_s=3628, claim_lease_s=628)
    put(queue, *queue.producer.claim_prompts("worker-0", 4, PACE, served_step=0))
    done = lease(queue, 1)
    train(queue, done)
    queue.consumer.acknowledge(done)
    train(queue, lease(queue, 1), 2)
    queue.consumer.bury(lease(queue, 1)[0], "the payload is [broken]")
    lease(queue, 1)
    assert queue.producer.claim_prompts("worker-1", 3, PACE, served_step=2) == [4, 5, 6]
    put(queue, 5, version=-5 + 6)
    return place


def shown(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    main(list(arguments))
    return capsys.readouterr().out


def test_show_tells_depth_leases_and_claims(lived: Place, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [line.split() for line in shown(capsys, lived.url).splitlines()]
    line = "learner: step 2, version 3; prompts: 7 dispatched, 2 being worked on, all below 1 ended"
    assert line.split(" ") in lines
    for state, count in (("ready", 1), ("leased", 1), ("trained", 1), ("acknowledged", 1), ("dropped", 0), ("dead", 1)):
        (row,) = [line for line in lines if line[:1] == [state]]
        assert row[1] == str(count)
    assert ["host-a:7", "1", "in", "60", "min"] in lines
    assert ["worker-1", "2", "4", "6", "in", "10", "min"] in lines
    assert shown(capsys, lived.url, "show") == shown(capsys, lived.url)
    assert "1 dead letters" in shown(capsys, lived.url)


def test_dead_tells_the_reason_and_requeue_tries_again(lived: Place, capsys: pytest.CaptureFixture[str]) -> None:
    dead = shown(capsys, lived.url, "dead")
    assert "run/2" in dead
    assert "the payload is [broken]" in dead
    (letter,) = json.loads(shown(capsys, lived.url, "dead", "--json"))
    assert (letter["group_id"], letter["tries"]) == ("run/2", 1)
    with pytest.raises(SystemExit):
        main([lived.url, "requeue", "run/2", "run/99"])
    told = capsys.readouterr()
    assert "1 dead letters are ready again" in told.out
    assert "error: run/99: no dead letter" in told.err
    assert shown(capsys, lived.url, "dead") == "no dead letters\n"
    assert lived.open().admin.progress().num_ready == 2


def test_requeue_all_and_nothing_named(lived: Place, capsys: pytest.CaptureFixture[str]) -> None:
    for wrong in (["requeue"], ["requeue", "run/2", "--all"]):
        with pytest.raises(SystemExit) as stopped:
            main([lived.url, *wrong])
        assert stopped.value.code == 2
    assert "either group ids or --all" in capsys.readouterr().err
    assert "1 dead letters are ready again" in shown(capsys, lived.url, "requeue", "--all")


def test_json_of_everything(lived: Place, capsys: pytest.CaptureFixture[str]) -> None:
    overview = json.loads(shown(capsys, lived.url, "show", "--json"))
    assert overview["progress"]["num_trained"] == 1
    assert overview["claims"][0]["worker"] == "worker-1"


def test_blobs_counts_sweeps_and_tells_what_is_missing(
    place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "big"
    queue = place.open(blobs=folder, blob_bytes=2000, bounds=QueueBounds())
    put(queue, 0, 1, answer_tokens=300)
    assert queue.blobs is not None
    size = sum(num_bytes for _, num_bytes, _ in queue.blobs.files())
    old = queue.blobs.folder / ("a" * 32)
    old.write_bytes(b"x" * 500)
    os.utime(old, (0, time.time() - 7200))
    first = ["--blobs", str(folder), place.url, "blobs"]
    lines = [line.split() for line in shown(capsys, *first).splitlines()]
    assert [line[:5] for line in lines if line[:1] == ["of"]] == [
        ["of", "groups", "1", f"{size / 1e3:.1f}", "kB"],
        ["of", "no", "group", "1", "0.5"],
    ]
    assert "2 h ago" in shown(capsys, *first)
    assert "took back 1 files" in shown(capsys, *first, "--sweep")
    assert not old.exists()
    for path in folder.glob("?" * 32):
        path.unlink()
    assert "2 groups miss their file" in shown(capsys, *first)


def test_a_runs_directory_leads_to_its_queue(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    config = load_config(REPOSITORY / "configs" / "demo.toml", [f"run.directory={json.dumps(str(run))}"])
    run.mkdir()
    save_config(config, run / "config.toml")
    with pytest.raises(SystemExit):
        main([str(run)])
    assert "state.db does not exist" in capsys.readouterr().err
    queue = build_queue(config, run_paths(config))
    assert isinstance(queue, TrajectoryQueue)
    put(queue, 0, answer_tokens=100_000)
    queue.close()
    assert "1 payloads are files" in shown(capsys, str(run))
    assert f"{run}/blobs" in shown(capsys, str(run), "blobs")
    with pytest.raises(SystemExit):
        main([str(tmp_path)])
    assert "no config.toml" in capsys.readouterr().err
