"""`python -m tools.canary`: a rollout as an operator sees it, and a controller that is killed anywhere."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from serving_bridge.canary import read_note
from serving_bridge.registry import Registry
from tests.support.canary_world import NAMESPACE, CanaryWorld
from tests.support.registries import FILES, candidate, published
from tools.canary import main

POLICY = """
[canary]
interval_s = 0.05
holdout = 0.5
max_hold_s = 100000
max_blind_looks = 3
metrics = [{ name = "error", margin = 0.2 }]
steps = [
  { shadow = 0.5, min_samples = 20, min_time_s = 0 },
  { share = 0.5, min_samples = 20, min_time_s = 0 },
  { share = 1.0, min_samples = 20, min_time_s = 0, proof = "all" },
]
"""


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "250")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A registry with real weights: the first entry is stable, the second has passed the gate."""
    root = tmp_path / "registry"
    registry = Registry(root)
    for seed in (1, 2):
        store, version = published(tmp_path / "weights", seed)
        number = registry.register(NAMESPACE, store, version, FILES, candidate(), actor="ann").number
        registry.index.set_stage(NAMESPACE, number, "passed", actor="ann", reason="all suites", unproven=True)
    registry.move(NAMESPACE, {"stable": 1}, holder="ann", actor="ann", reason="first")
    registry.close()
    (tmp_path / "policy.toml").write_text(POLICY)
    return root


def told(capsys: pytest.CaptureFixture[str], place: Path, command: str, *more: str) -> str:
    name, *rest = command.split()
    main([name, str(place), *rest, *more])
    return capsys.readouterr().out


def start(place: Path) -> None:
    main(["start", str(place), "2", "--policy", str(place.parent / "policy.toml"), "--reason", "a test"])


def observed(place: Path, *, errors: float = 0.0, n: int = 300) -> Path:
    """A file of answers of both arms, and of shadows."""
    file = place.parent / "answers.jsonl"
    rows = []
    for number in range(n):
        for arm, version, shadow in (("stable", 1, False), ("canary", 2, True), ("canary", 2, False)):
            bad = float(arm == "canary" and number < errors * n)
            row = {"kind": "answer", "arm": arm, "version": version, "shadow": shadow, "measures": {"error": bad}}
            rows.append(json.dumps(row | {"tenant": "acme", "conversation": f"{os.urandom(4).hex()}-{number}"}))
    file.write_text("\n".join(rows))
    return file


def test_a_rollout_as_an_operator_sees_it(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    policy = ("--policy", str(place.parent / "policy.toml"))
    assert "has had no rollout yet" in told(capsys, place, "status")
    assert "copies of 0.5" in told(capsys, place, "dry-run 2", *policy)
    start(place)
    assert "rollout 1: entry 2 against 1, step shadow" in capsys.readouterr().out
    told(capsys, place, "observe --file", str(observed(place)))
    page = told(capsys, place, "dry-run")
    assert "verdict: next" in page
    assert "error" in page
    assert "rollout 1: pause is done" in told(capsys, place, "pause")
    assert "paused at step shadow" in told(capsys, place, "status")
    told(capsys, place, "resume")
    told(capsys, place, "abort")
    assert json.loads(told(capsys, place, "status --json"))["phase"] == "aborted"
    start(place)
    told(capsys, place, "observe --file", str(observed(place, errors=1.0)))
    page = told(capsys, place, "run --once")
    assert "phase rolled_back" in page
    assert "error is worse: more by at least" in told(capsys, place, "history --rollout 2")
    rows = json.loads(told(capsys, place, "history --json"))
    assert [(row["rollout"], row["phase"]) for row in rows] == [(2, "rolled_back"), (1, "aborted")]
    assert "1 decisions come out as they were stored" in told(capsys, place, "replay 2")
    note = read_note(place, NAMESPACE)
    assert note is not None
    assert (note.hold, note.good_entry, note.good_run) == (True, 1, "demo")
    assert "may go on after rollout 2" in told(capsys, place, "release")
    note = read_note(place, NAMESPACE)
    assert note is not None
    assert not note.hold, "also where no controller runs"


def test_a_decision_that_was_changed_does_not_replay(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start(place)
    told(capsys, place, "observe --file", str(observed(place, errors=1.0)))
    told(capsys, place, "run --once")
    registry = Registry(place)
    registry._db.write(
        lambda session: session.execute(
            'UPDATE decisions SET document = replace(document, \'"verdict":"failure"\', \'"verdict":"next"\')'
        )
    )
    registry.close()
    with pytest.raises(SystemExit):
        main(["replay", str(place), "1"])
    assert "comes out as failure" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("command", "match"),
    [
        (["start", "{}", "9", "--reason", "x"], "has no entry 9"),
        (["start", "{}", "canary", "--reason", "x"], "has no alias canary"),
        (["start", "{}", "1", "--reason", "x"], "is stable already"),
        (["start", "{}", "2", "--reason", "x", "--policy", "{}/nowhere.toml"], "can't be read"),
        (["pause", "{}"], "no rollout under way"),
        (["rollback", "{}", "--reason", "x"], "nothing to go back to"),
        (["replay", "{}", "1"], "has no rollout 1"),
        (["release", "{}"], "is not held"),
        (["status", "{}/other"], "does not exist"),
    ],
    ids=range(9),
)
def test_what_can_not_be_done_is_one_line(
    place: Path, capsys: pytest.CaptureFixture[str], command: list[str], match: str
) -> None:
    with pytest.raises(SystemExit):
        main([part.replace("{}", str(place)) for part in command])
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert match in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    "line",
    ["{", '{"kind": "dropped"}', '{"kind": "answer", "arm": "x"}', "x" * 70_000],
    ids=["cut", "short", "arm", "long"],
)
def test_a_file_that_is_none_names_its_line(place: Path, capsys: pytest.CaptureFixture[str], line: str) -> None:
    file = observed(place, n=1)
    file.write_text(file.read_text() + "\n" + line)
    with pytest.raises(SystemExit):
        main(["observe", str(place), "--file", str(file)])
    assert "answers.jsonl, line 4" in capsys.readouterr().err


_KILLED = """
import sys
from tools.canary import main
main(sys.argv[1:])
"""


def killed_at(point: str, *command: str) -> None:
    environment = os.environ | {"WEIR_CRASH_AT": point}
    ended = subprocess.run(
        [sys.executable, "-c", _KILLED, *command], env=environment, check=False, capture_output=True, timeout=60
    )
    assert ended.returncode < 0, ended.stderr.decode()


@pytest.mark.parametrize("errors", [0.0, 1.0], ids=["good", "bad"])
@pytest.mark.parametrize("point", ["canary.seen", "canary.decided"])
def test_after_a_kill_alias_split_and_rollout_agree_and_the_next_controller_goes_on(
    place: Path, capsys: pytest.CaptureFixture[str], point: str, errors: float
) -> None:
    start(place)
    file = observed(place, errors=errors)
    told(capsys, place, "observe --file", str(file))
    killed_at(point, "run", str(place))
    assert _disagreement(place) == ""
    world = CanaryWorld.of(place)
    world.clock.now_s = time.time() + 60
    for _ in range(10):
        if world.rollouts.open_one(NAMESPACE) is None:
            break
        told(capsys, place, "observe --file", str(file))
        world.controller().look()
        world.clock.now_s += 60
    world.close()
    phase = json.loads(told(capsys, place, "status --json"))["phase"]
    assert phase == ("rolled_back" if errors else "promoted")
    assert _disagreement(place) == ""
    assert "come out as they were stored" in told(capsys, place, "replay 1")
    told(capsys, place, "run --once")
    note = read_note(place, NAMESPACE)
    assert note is not None
    assert (note.hold, note.good_entry) == ((True, 1) if errors else (False, 2))


def test_a_kill_after_the_note_changes_nothing_more(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start(place)
    told(capsys, place, "observe --file", str(observed(place, errors=1.0)))
    killed_at("canary.noted", "run", str(place))
    assert _disagreement(place) == ""
    note = read_note(place, NAMESPACE)
    assert note is not None
    assert note.hold


@pytest.mark.parametrize(("command", "phase"), [("pause", "paused"), ("abort", "aborted")])
def test_a_kill_after_a_command_was_obeyed_does_it_once(place: Path, command: str, phase: str) -> None:
    start(place)
    killed_at("canary.obeyed", command, str(place))
    world = CanaryWorld.of(place)
    rollout = world.rollouts.latest(NAMESPACE)[0]
    assert (rollout.phase, rollout.asked, world.stage(2)) == (phase, "", "shadow" if phase == "paused" else "passed")
    assert world.agreement()[1:] == ((2, 1, 0.0, 0.5) if phase == "paused" else (None, 1, 0.0, 0.0))
    world.close()


def test_a_kill_right_after_the_start_leaves_a_rollout_under_way(place: Path) -> None:
    command = ("start", str(place), "2", "--policy", str(place.parent / "policy.toml"), "--reason", "x")
    killed_at("canary.started", *command)
    assert _disagreement(place) == ""


def _disagreement(place: Path) -> str:
    """What of alias, split, stage and rollout does not say the same; "" for nothing."""
    world = CanaryWorld.of(place)
    try:
        phase, canary, stable, share, shadow = world.agreement()
        rollout = world.rollouts.latest(NAMESPACE)[0]
        step = rollout.policy.steps[rollout.state.step]
        if rollout.is_open:
            expected = (2, 1, rollout.policy.share_of(step), step.shadow, "canary" if step.share else "shadow")
        elif phase == "promoted":
            expected = (None, 2, 0.0, 0.0, "stable")
        else:
            expected = (None, 1, 0.0, 0.0, "rolled_back")
        found = (canary, stable, share, shadow, world.stage(2))
        return "" if found == expected else f"{phase}: {found}, expected {expected}"
    finally:
        world.close()


def test_calculations_without_a_registry(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    power = ["power", "--metric", "refusal", "--baseline", "0.03", "--effect", "0.05", "--per-day", "20000"]
    main([*power, "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["as stable"]["looking_days"] == pytest.approx(found["as stable"]["looking"] / 20000)
    assert 1000 < found["worse by --effect"]["fixed"] < found["worse by --effect"]["looking"] < 50_000
    with pytest.raises(SystemExit):
        main([*power[:1], "--metric", "ttft_p95_s", "--baseline", "1", "--effect", "0.2", "--per-day", "20000"])
    assert "expected another, e.g. ttft_s" in capsys.readouterr().err
    for wrong in (["--per-day", "0"], ["--deviation", "-2"]):
        with pytest.raises(SystemExit):
            main([*power, *wrong])
        assert "expected conversations a day above 0" in capsys.readouterr().err
    main([*power[:1], "--metric", "ttft_s", "--baseline", "0.3", "--effect", "0.2", "--per-day", "20000"])
    assert "go on" in capsys.readouterr().out
    file = tmp_path / "rows.jsonl"
    file.write_text(
        "\n".join(
            json.dumps({"arm": ("canary", "stable")[n % 2], "value": n % 5, "before": n % 5 + n % 3, "stratum": "a"})
            for n in range(60)
        )
    )
    main(["compare", "--file", str(file)])
    page = capsys.readouterr().out
    assert all(way in page for way in ("plain", "CUPED", "strata"))
    file.write_text('{"reward": 1, "behavior_logprob": -1, "target_logprob": -1}\n' * 150)
    main(["estimate", "--file", str(file)])
    assert "effective sample size 150" in capsys.readouterr().out
    for bad, match in (("{}", "line 1"), ("", "0 rows"), ('{"reward": 1, "behavior_logprob": -1}', "line 1")):
        file.write_text(bad)
        with pytest.raises(SystemExit):
            main(["estimate", "--file", str(file)])
        assert match in capsys.readouterr().err
