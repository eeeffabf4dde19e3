"""A task whose rewards come later: episodes get none, and whoever asks the task itself gets one at once."""

from __future__ import annotations

import json
from pathlib import Path

from rewards.contracts import RewardRequest
from rewards.settings import TaskSettings
from rewards.tasks import create_task, delayed_sources, played_task


def _task(tmp_path: Path) -> TaskSettings:
    for name in ("now", "later"):
        rows = [{"question": f"{name} {i}?", "answer": str(i)} for i in range(40)]
        (tmp_path / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    later = {
        "data": str(tmp_path / "later.jsonl"),
        "reward": "delayed",
        "delayed": {"window_s": 5, "heldout_reward": "exact"},
    }
    now = {"data": str(tmp_path / "now.jsonl"), "reward": "exact"}
    return TaskSettings.model_validate({"provider": "rows", "sources": [now, later]})


def test_only_the_sources_that_say_so_wait(tmp_path: Path) -> None:
    settings = _task(tmp_path)
    assert list(delayed_sources(settings)) == ["later"]
    task = create_task(settings, seed=0)
    played = played_task(task, settings)
    try:
        assert played.version == f"{task.version}+delayed"
        problems = {played.problem("train", i).source: played.problem("train", i) for i in range(8)}
        for label, verdict in (("now", "pass"), ("later", "pending")):
            request = RewardRequest(problems[label], problems[label].answer, "stop")
            assert (played.score(request).verdict, task.score(request).verdict) == (verdict, "pass")
    finally:
        task.close()


def test_a_task_without_delay_is_played_as_it_is(tmp_path: Path) -> None:
    settings = _task(tmp_path).of_source(_task(tmp_path).sources[0])
    task = create_task(settings, seed=0)
    assert played_task(task, settings) is task
    task.close()
