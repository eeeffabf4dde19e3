"""What a worker does with a run that has finished, and a job that is told to stop before it has begun."""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path

import pytest

from configs.load import ConfigError, load_config, save_config
from learner_jax.conversion.convert import from_hf
from learner_jax.runtime.waits import Waits, WaitTimeoutError
from serving_bridge.queue.queue import TrajectoryQueue
from serving_bridge.rollout.carried_on import awaits_work
from tests.conftest import REPOSITORY
from tools import learner
from tools.assembly import base_model_dir, make_private_directory, run_paths
from tools.launch import Job
from tools.reporting.live_view import LiveView

DEMO = REPOSITORY / "configs" / "demo.toml"


def awaits(queue: TrajectoryQueue, total_steps: int, *, max_wait_s: float = 60.0, stop: bool = False) -> bool:
    return awaits_work(
        queue.producer, total_steps=total_steps, max_wait_s=max_wait_s, waits=Waits(), should_stop=lambda: stop
    )


@pytest.fixture
def finished(tmp_path: Path) -> TrajectoryQueue:
    """The queue of a run that ended after five steps."""
    queue = TrajectoryQueue(tmp_path / "state.db")
    queue.consumer.recover([], completed_steps=5, prompt_cursor=0)
    queue.consumer.finish()
    return queue


def test_a_new_run_has_work_and_a_complete_one_has_none(tmp_path: Path, finished: TrajectoryQueue) -> None:
    assert awaits(TrajectoryQueue(tmp_path / "new.db"), 5)
    assert not awaits(finished, 5)


def test_a_run_that_is_carried_on_is_waited_for_and_taken_up(tmp_path: Path, finished: TrajectoryQueue) -> None:
    """The worker comes first; the learner later."""
    found: list[bool] = []
    worker = threading.Thread(target=lambda: found.append(awaits(finished, 9)), daemon=True)
    worker.start()
    time.sleep(0.5)
    assert worker.is_alive()
    TrajectoryQueue(tmp_path / "state.db").consumer.recover([], completed_steps=5, prompt_cursor=0)
    worker.join(60)
    assert found == [True]


def test_the_wait_for_a_learner_is_bounded_and_ends_with_a_stop(finished: TrajectoryQueue) -> None:
    with pytest.raises(WaitTimeoutError, match=r"ended after 5 steps, to be carried on to 9.*rollout\.max_wait_s"):
        awaits(finished, 9, max_wait_s=0.3)
    assert not awaits(finished, 9, stop=True)


def test_a_job_that_is_told_to_stop_while_it_starts_starts_no_more(tmp_path: Path) -> None:
    """Asked before the first process, then before the second."""
    for allowed, logs in ((0, []), (1, ["serve.log"])):
        config = load_config(DEMO, [f"run.directory={tmp_path / str(allowed)}"])
        paths = run_paths(config)
        make_private_directory(paths)
        save_config(config, paths.config)
        asked = iter(range(1000))
        with LiveView(config, paths.directory) as view:
            job = Job(config, paths, view, lambda: next(asked) >= allowed)  # noqa: B023
            assert job.run() is False
        assert sorted(path.name for path in paths.logs.iterdir()) == logs


def test_a_supervised_start_without_a_table_says_what_is_missing(tmp_path: Path) -> None:
    config = load_config(DEMO, [f"run.directory={tmp_path}"]).model_copy(update={"warm_start": None})
    with pytest.raises(ConfigError, match=r"--warm-start .* add a \[warm_start\] or \[supervised\] table"):
        learner.run_warm_start(config, run_paths(config))


def test_a_supervised_start_that_is_there_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = load_config(DEMO, [f"run.directory={tmp_path}"])
    paths = run_paths(config)
    from_hf(base_model_dir(config, paths), out=paths.warm_start)
    paths.start_model.mkdir()
    monkeypatch.setattr(
        sys, "argv", ["learner", "--config", str(DEMO), "--set", f"run.directory={tmp_path}", "--warm-start"]
    )
    learner.main()
    assert f"supervised start is there already: {paths.start_model}" in capsys.readouterr().out
