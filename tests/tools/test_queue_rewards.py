"""`python -m tools.queue ... waiting` and `... reward`: what waits, what is brought, what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from serving_bridge.queue import Delay, TrajectoryQueue
from tests.support.trajectories import make_group, pending
from tools.queue import main


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture
def url(tmp_path: Path) -> str:
    """A queue with a group that waits."""
    found = str(tmp_path / "state.db")
    queue = TrajectoryQueue(found)
    queue.producer.put([(0, pending(make_group("run/0")))], delays={0: Delay(3600.0)})
    queue.close()
    return found


def shown(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    main(list(arguments))
    return capsys.readouterr().out


def _file(folder: Path, *lines: object) -> str:
    path = folder / "rewards.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + "\n\n".join(map(json.dumps, lines)).encode())
    return str(path)


def test_rewards_of_a_file_join_and_a_second_time_change_nothing(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = _file(
        tmp_path,
        {"trajectory_id": "run/0/0", "reward": 1},
        {"trajectory_id": "run/0/1", "reward": 0.5, "reward_id": "rated", "parts": {"stars": 3}},
        {"trajectory_id": "run/9/0", "reward": 0},
    )
    lines = shown(capsys, url, "waiting").splitlines()
    assert lines[0] == "1 groups wait for rewards"
    assert any(line.split()[:4] == ["run/0", "2", "of", "2"] for line in lines)
    assert shown(capsys, url, "reward", file) == "3 rewards: 2 joined, 1 unknown\n"
    assert json.loads(shown(capsys, url, "reward", file, "--json"))["duplicate"] == 3
    told = json.loads(shown(capsys, url, "waiting", "--json"))
    assert (told["num_waiting"], told["counts"]["joined"], told["kept"][0]["subject"]) == (0, 2, "run/9/0")
    assert "run/9/0" in shown(capsys, url, "waiting")
    queue = TrajectoryQueue(url)
    (group,) = queue.consumer.lease_groups(9, trained_version=1, max_staleness=5).groups
    assert [trajectory.total_reward for trajectory in group] == [1.0, 0.5]
    queue.close()


def test_answers_that_wait_are_printed_with_their_ids(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [json.loads(line) for line in shown(capsys, url, "waiting", "--answers").splitlines()]
    assert [line["trajectory_id"] for line in lines] == ["run/0/0", "run/0/1"]
    assert all(line["index"] == 0 and line["due_s"] > 0 for line in lines)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"reward": 1}', "line 2: no reward: Object missing required field `trajectory_id`"),
        ('{"trajectory_id": "run/0/0", "reward": "1"}', "line 2: no reward: Expected `float`, got `str`"),
        ('{"trajectory_id": "run/0/0", "reward": true}', "line 2: no reward: Expected `float`, got `bool`"),
        ('{"trajectory_id": "run/0/0", "reward": 1e300}', "line 2: reward is 1e+300, expected a number from"),
        ('{"trajectory_id": "", "reward": 1}', "line 2: trajectory_id is empty"),
        ('{"trajectory_id": "a\\u0000b", "reward": 1}', "line 2: trajectory_id is a\\x00b, expected printable text"),
        ('{"trajectory_id": "run/0/0", "reward": 1, "score": 2}', "line 2: no reward: Object contains unknown field"),
        ("[" * 5000, "line 2: no reward"),
        ('{"trajectory_id": "run/0/0", "reward": 1, "parts": {"a": NaN}}', "line 2: no reward"),
        ('"' + "x" * 2**20 + '"', "line 2: more than 1048576 bytes"),
    ],
)
def test_a_line_that_is_no_reward_is_named_and_nothing_of_it_stored(
    line: str, message: str, url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "wrong.jsonl"
    file.write_text('{"trajectory_id": "run/0/0", "reward": 1}\n' + line)
    with pytest.raises(SystemExit):
        main([url, "reward", str(file)])
    told = capsys.readouterr().err
    assert message in told
    assert len(told) < 2000
    assert json.loads(shown(capsys, url, "waiting", "--json"))["counts"]["joined"] == 0


def test_a_file_that_is_not_there_is_told(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([url, "reward", "nowhere.jsonl"])
    assert "error: nowhere.jsonl can't be read: No such file or directory" in capsys.readouterr().err
