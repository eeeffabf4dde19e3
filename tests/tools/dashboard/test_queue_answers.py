"""Answers of training, read from the queue while a run goes on."""

from __future__ import annotations

from pathlib import Path

import pytest

from configs.load import load_config
from serving_bridge.queue import TrajectoryQueue
from tests.support.trajectories import failing, make_group
from tests.support.watched_runs import begun_run
from tools.assembly import in_directory, run_paths
from tools.dashboard.queue_look import EVERY_S, QueueLook, Seen


class Words:
    """A tokenizer whose tokens are numbers."""

    def decode(self, ids: list[int]) -> str:
        return " ".join(map(str, ids))


@pytest.fixture
def now() -> list[float]:
    return [0.0]


@pytest.fixture
def look(tmp_path: Path, now: list[float], monkeypatch: pytest.MonkeyPatch) -> QueueLook:
    directory = begun_run(tmp_path / "run")
    monkeypatch.setattr("tools.dashboard.queue_look.load_tokenizer", lambda folder: Words())
    config = load_config(directory / "config.toml")
    return QueueLook(config, run_paths(in_directory(config, directory)), clock=lambda: now[0])


def looked(look: QueueLook) -> Seen:
    found = look.look({1: 40})
    assert found is not None
    return found


def test_answers_come_with_their_rewards_and_once(tmp_path: Path, look: QueueLook, now: list[float]) -> None:
    with_failure = make_group("run/1", rewards=[0.25, 0.75])
    with_failure[0] = failing(with_failure[0])
    queue = TrajectoryQueue(tmp_path / "run" / "state.db", blobs=tmp_path / "run" / "blobs", blob_bytes=1)
    queue.producer.put([(0, make_group("run/0", rewards=[1.0, 0.0], version=1))])
    queue.producer.put([(1, with_failure)])
    found = looked(look)
    assert [(answer.reward, answer.verdict) for answer in found.answers] == [
        (1.0, "pass"), (0.0, "fail"), (None, "no verdict within 5 s"), (0.75, "fail"),
    ]  # fmt: skip
    first = found.answers[0]
    group = make_group("run/0", rewards=[1.0, 0.0])
    assert first.prompt == Words().decode(group[0].tokens[:3].tolist())
    assert first.answer == Words().decode(group[0].tokens[3:].tolist())
    assert (first.step, first.when, first.versions, first.tokens) == (40, "step 40", [1, 1], 2)
    assert look.look({}) is None, "not due"
    now[0] += EVERY_S
    queue.producer.put([(2, make_group("run/2"))])
    assert {answer.source for answer in looked(look).answers} == {"training"}
    now[0] += EVERY_S
    found = looked(look)
    assert (len(found.answers), found.progress.num_ready if found.progress else None) == (0, 3)
    queue.close()


def test_without_a_tokenizer_the_depth_is_still_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = begun_run(tmp_path / "run")
    config = load_config(directory / "config.toml")
    look = QueueLook(config, run_paths(in_directory(config, directory)), clock=lambda: 0.0)
    queue = TrajectoryQueue(directory / "state.db")
    queue.producer.put([(0, make_group("run/0"))])
    found = looked(look)
    assert (found.answers, found.problem, found.progress.num_ready if found.progress else None) == ([], "", 1)
    queue.close()
