"""All that can be known before a start is found at once, with the setting named; a dry run tells it alone."""

from __future__ import annotations

import json
import os
import shutil
import socket
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from configs.load import load_config
from serving_bridge.checks import machine as machine_checks
from serving_bridge.checks.database import database_findings
from serving_bridge.checks.findings import Check, Finding, run_checks
from serving_bridge.checks.prompts import problem_findings
from serving_bridge.queue.queue import TrajectoryQueue
from tests.conftest import REPOSITORY
from tools import train
from tools.assembly import before_start, wiring
from tools.assembly.before_start import PreflightError
from tools.assembly.dry_run import redacted, variables
from tools.assembly.run_directory import choose
from tools.assembly.start_checks import Part

DEMO, STORIES = (REPOSITORY / "configs" / name for name in ("demo.toml", "stories.toml"))


def findings(part: Part, config_path: Path, run: Path, *overrides: str) -> list[Finding]:
    config = load_config(config_path, [f"run.directory={run}", *overrides])
    results = before_start.look(part, config, wiring.run_paths(config))
    return [finding for result in results for finding in result.findings if finding.severity != "note"]


def errors(*arguments: object) -> dict[str, str]:
    found = findings(*arguments)  # type: ignore[arg-type]
    return {finding.setting: str(finding) for finding in found if finding.severity == "error"}


@pytest.fixture
def stories(stories_model: Path, tmp_path: Path) -> Path:
    """A copy of the real model's folder, to be damaged."""
    return Path(shutil.copytree(stories_model, tmp_path / "model"))


def test_a_sound_job_has_nothing_to_tell_and_nothing_is_written(tmp_path: Path) -> None:
    assert findings("train", DEMO, tmp_path / "run") == []
    assert not (tmp_path / "run").exists()


def test_a_sound_model_folder_has_nothing_to_tell(stories: Path, tmp_path: Path) -> None:
    assert findings("train", STORIES, tmp_path / "run", f"model.path={stories}") == []


def test_all_problems_come_together(stories: Path, tmp_path: Path) -> None:
    (stories / "model.safetensors").unlink()
    (tmp_path / "weights").write_text("a file")
    found = errors(
        "train",
        STORIES,
        tmp_path / "run",
        f"model.path={stories}",
        f"store.weights={tmp_path / 'weights'}",
        "store.database=postgresql://nobody@127.0.0.1:1/none",
        "serving.max_model_len=100000",
        "evaluation.num_problems=90000",
        "learner.loss.kl.reference=/nowhere",
        "learner.mesh={ fsdp = 2 }",
    )
    assert found.keys() >= {
        "model.path",
        "store.weights",
        "store.database",
        "serving.max_model_len",
        "evaluation.num_problems",
        "learner.loss.kl.reference",
    }
    assert "model.safetensors" in found["model.path"]
    assert "at most 512, the model's context" in found["serving.max_model_len"]
    assert "the heldout problems that there are, got 90000" in found["evaluation.num_problems"]


@pytest.mark.parametrize("part", ["train", "rollout", "learner", "warm_start"])
def test_a_chat_template_that_is_missing_is_found_by_whoever_needs_it(
    part: Part, stories: Path, tmp_path: Path
) -> None:
    if part == "warm_start":
        pytest.skip("keyword_story has no supervised start")
    found = errors(part, STORIES, tmp_path / "run", f"model.path={stories}", "task.chat=true")
    assert "has no chat template; set task.chat to false" in " ".join(found.values())


def test_weights_of_another_shape_are_found_before_the_learner_starts(stories: Path, tmp_path: Path) -> None:
    config = json.loads((stories / "config.json").read_text())
    (stories / "config.json").write_text(json.dumps(config | {"intermediate_size": 2 * config["intermediate_size"]}))
    found = errors("train", STORIES, tmp_path / "run", f"model.path={stories}")
    assert "has shape" in found["model.path"]


def test_damaged_weight_files_are_found_before_a_server_starts(stories: Path, tmp_path: Path) -> None:
    weights = stories / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    found = errors("serve", STORIES, tmp_path / "run", f"model.path={stories}")
    assert str(weights) in found["model.path"]
    weights.unlink()
    (stories / "model.safetensors.index.json").write_text('{"weight_map": []}')
    assert "index.json" in errors("serve", STORIES, tmp_path / "run", f"model.path={stories}")["model.path"]


def test_too_few_problems_name_who_asks_for_them(tmp_path: Path) -> None:
    """Sums of two digits are 81 questions, or fewer."""
    digits = ["task.options.min_digits=1", "task.options.max_digits=1"]
    found = errors("train", DEMO, tmp_path / "run", *digits, "learner.num_golden=50")
    assert "the heldout problems that there are, got 256" in found["evaluation.num_problems"]
    assert "the validation problems that there are, got 256" in found["warm_start.num_validation"]
    fewer = ["evaluation.num_problems=1", "warm_start.num_validation=1"]
    (told,) = errors("train", DEMO, tmp_path / "run", *digits, *fewer, "learner.num_golden=50").values()
    assert "learner.num_golden is 50, but of" in told


@pytest.mark.parametrize("part", ["train", "rollout"])
def test_prompts_that_are_all_too_long_are_an_error_at_once(part: Part, tmp_path: Path) -> None:
    started = time.monotonic()
    found = errors(part, DEMO, tmp_path / "run", "rollout.max_prompt_tokens=2")
    assert "rollout.max_prompt_tokens" in found
    assert "2: all of" in found["rollout.max_prompt_tokens"]
    assert time.monotonic() - started < 2 * before_start.LIMIT_S


def test_prompts_that_are_skipped_are_counted_and_told(stories: Path, tmp_path: Path) -> None:
    """The limit is a token short of the longest prompt."""
    config = load_config(STORIES, [f"model.path={stories}", f"run.directory={tmp_path / 'run'}"])
    task, sample = wiring.build_task(config), 200
    encoder, _ = wiring.build_encoder(config, stories)
    lengths = [len(encoder.tokens(task.problem("train", index))) for index in range(sample)]
    limit = max(lengths) - 1
    rollout = config.rollout.model_copy(update={"max_prompt_tokens": limit})
    encoder, _ = wiring.build_encoder(config.model_copy(update={"rollout": rollout}), stories)
    (told,) = problem_findings(task, encoder, asked={}, answer=100, train_sample=sample, limit_s=60)
    assert told.severity == "warning"
    skipped = lengths.count(limit + 1)
    assert f"{limit}: {skipped} of {sample} train prompts that were looked at are longer" in str(told)
    assert f"need {limit + 101}" in str(told)


def test_a_task_without_answers_to_imitate_is_told_before_its_supervised_start(stories: Path, tmp_path: Path) -> None:
    start = "warm_start={ target_accuracy = 0.5, max_steps = 5, batch_size = 2, learning_rate = 1e-3 }"
    found = errors("warm_start", STORIES, tmp_path / "run", f"model.path={stories}", start)
    assert "drop [warm_start]" in " ".join(found.values())


def test_a_port_in_use_may_heal(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        (finding,) = machine_checks.port_findings("127.0.0.1", port, 1)
    assert (finding.setting, finding.may_heal) == ("serving.port", True)
    assert f"port {port} of 127.0.0.1 to be free" in str(finding)
    assert list(machine_checks.port_findings("127.0.0.1", port, 1)) == []


# Databases.


def sqlite_findings(path: Path) -> list[str]:
    return [str(finding) for finding in database_findings(str(path), timeout_s=5, lease_s=60)]


def test_a_database_file_that_cannot_be_the_queue(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no database, but long enough to have been one" * 10)
    assert "an SQLite database at" in sqlite_findings(tmp_path / "text")[0]
    assert "got a folder" in sqlite_findings(tmp_path)[0]
    assert "is a file" in sqlite_findings(tmp_path / "text" / "below.db")[0]
    foreign = tmp_path / "foreign.db"
    with sqlite3.connect(foreign) as connection:
        connection.execute("PRAGMA application_id = 7")
        connection.execute("CREATE TABLE t (x)")
    assert "another program's database" in sqlite_findings(foreign)[0]
    assert sqlite_findings(tmp_path / "new.db") == []
    assert not (tmp_path / "new.db").exists()


def test_the_queues_own_file_is_read_and_not_changed(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    TrajectoryQueue(path).close()
    before = path.read_bytes()
    assert sqlite_findings(path) == []
    assert path.read_bytes() == before
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 999")
    connection.close()
    assert "got 999 in" in sqlite_findings(path)[0]


@pytest.mark.postgres
def test_a_server_without_the_right_to_make_a_schema_is_refused(postgres_url: str) -> None:
    import psycopg
    from psycopg import sql

    role = f"preflight_{os.getpid()}"
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE ROLE {} LOGIN").format(sql.Identifier(role)))
        try:
            place = connection.info
            url = f"postgresql://{role}@/{place.dbname}?host={place.host}&port={place.port}&schema=preflight_none"
            (finding,) = database_findings(url, timeout_s=5, lease_s=60)
            assert "to have the right to create schema preflight_none" in str(finding)
            assert list(database_findings(postgres_url, timeout_s=5, lease_s=60)) == []
            names = connection.execute("SELECT nspname FROM pg_namespace WHERE nspname = 'preflight_none'").fetchall()
            assert names == []
        finally:
            connection.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(role)))


def test_a_server_that_is_away_may_heal() -> None:
    started = time.monotonic()
    (finding,) = database_findings("postgresql://u@127.0.0.1:1/d", timeout_s=5, lease_s=60)
    assert finding.may_heal
    assert "refused" in str(finding)
    assert time.monotonic() - started < 30


def test_a_warm_up_that_does_not_end_is_told_and_allowed(tmp_path: Path) -> None:
    for steps, told in ((9, ["learner.optimizer.warmup_steps"]), (10, [])):
        config = load_config(DEMO, [f"learner.steps={steps}", f"run.directory={tmp_path / 'run'}"])
        results = before_start.look("learner", config, wiring.run_paths(config))
        warned = [f.setting for result in results for f in result.findings if f.severity == "warning"]
        assert [setting for setting in warned if "warmup" in setting] == told


# The machine.


def test_disks_without_room_say_how_much_is_needed(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    needs = [
        ("run.directory", tmp_path / "a", free * 0.6, free * 0.6),
        ("store.weights", tmp_path / "b", 0.0, free * 0.7),
    ]
    (told,) = machine_checks.disk_findings(needs)
    assert (told.setting, told.severity) == ("run.directory, store.weights", "warning")
    (told,) = machine_checks.disk_findings([*needs, ("store.blobs", tmp_path, free * 0.6, free * 0.6)])
    assert told.severity == "error"
    assert list(machine_checks.disk_findings([("x", tmp_path, 1.0, 1.0)])) == []


def test_limits_of_open_files_clock_memory_and_terminal() -> None:
    (few,) = machine_checks.open_files_findings(least=10, most=10**9)
    assert few.severity in ("warning", "error")
    assert "ulimit -n: expected at least 1000000128" in str(few)
    assert list(machine_checks.open_files_findings(least=1, most=1)) == []
    (early,) = machine_checks.clock_findings(0.0, built_s=1e9, server_s=None, lease_s=60)
    assert "expected a time after 2001-09-09" in str(early)
    (apart,) = machine_checks.clock_findings(1000.0, built_s=0.0, server_s=1100.0, lease_s=60)
    assert "100 s behind it" in str(apart)
    assert apart.severity == "error"
    assert list(machine_checks.clock_findings(1000.0, built_s=0.0, server_s=1001.0, lease_s=60)) == []
    assert list(machine_checks.memory_findings(2.0, 1.0))
    assert not list(machine_checks.memory_findings(2.0, None))
    assert {f.setting for f in machine_checks.terminal_findings(is_terminal=True, columns=20, encoding="latin-1")} == {
        "terminal"
    }


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_is_read_only(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    assert list(machine_checks.folder_findings({"store.weights": tmp_path / "a" / "b"}))


# How checks are run.


def test_a_look_that_hangs_is_left_behind_and_told() -> None:
    forever = threading.Event()

    def hang() -> Iterator[Finding]:
        forever.wait(60)
        yield from ()

    started = time.monotonic()
    checks = [Check("the network drive", "store.weights", hang), Check("rest", "x", lambda: ())]
    late, rest = run_checks(checks, limit_s=0.2, own=lambda error: True)
    forever.set()
    assert time.monotonic() - started < 30
    assert [(f.setting, f.severity) for f in late.findings] == [("store.weights", "warning")]
    assert rest.findings == ()


def test_our_errors_are_findings_and_others_are_raised() -> None:
    def refuse() -> Iterator[Finding]:
        raise ValueError("config.json is missing")
        yield

    check = Check("model", "model.path", refuse)
    (result,) = run_checks([check], limit_s=5, own=lambda error: True)
    assert str(result.findings[0]) == "model.path: config.json is missing"
    with pytest.raises(ValueError, match=r"config\.json is missing"):
        run_checks([check], limit_s=5, own=lambda error: False)


def test_an_error_that_begins_with_its_setting_is_told_under_it() -> None:
    def refuse() -> Iterator[Finding]:
        raise ValueError("task.reward 'my_rewards:exat': my_rewards has no 'exat'")
        yield

    (result,) = run_checks([Check("model", "model.path", refuse)], limit_s=5, own=lambda error: True)
    assert result.findings[0].setting == "task.reward"
    assert str(result.findings[0]) == "task.reward 'my_rewards:exat': my_rewards has no 'exat'"


@pytest.mark.parametrize(
    ("override", "setting", "said"),
    [
        ("task.provider=row", "task.provider", "task.provider 'row' is unknown; did you mean rows?"),
        ("task.provider=no_such:Task", "task.provider", "there is no module 'no_such'; looked in"),
        ("task.environment=feedbak", "task.environment", "did you mean feedback?"),
    ],
)
def test_code_of_the_users_that_can_not_be_used_is_one_line(
    override: str, setting: str, said: str, tmp_path: Path
) -> None:
    found = errors("rollout", DEMO, tmp_path / "run", override)
    assert list(found) == [setting]
    assert said in found[setting]


def test_what_is_found_before_an_error_is_kept_and_one_reason_is_told_once() -> None:
    def look() -> Iterator[Finding]:
        yield Finding("a", "b", "c", "d")
        raise ValueError("no config.json")

    checks = [Check("first", "model.path", look), Check("second", "model.path", look)]
    first, second = run_checks(checks, limit_s=5, own=lambda error: True)
    assert [str(finding) for finding in first.findings] == ["a: expected b, got c; d", "model.path: no config.json"]
    assert [finding.severity for finding in second.findings] == ["error", "note"]


def test_what_may_heal_is_worth_another_try_only_alone() -> None:
    heals, stays = Finding("a", "", "x", "", may_heal=True), Finding("b", "", "y", "")
    assert PreflightError([heals]).can_heal
    assert not PreflightError([heals, stays]).can_heal
    assert str(PreflightError([stays])) == "b: y"
    assert "2 things have to be changed before this can start:\n  a: x\n  b: y" in str(PreflightError([heals, stays]))


# The job.


def test_a_job_that_cannot_start_starts_nothing(
    stories: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (stories / "model.safetensors").unlink()
    run = tmp_path / "run"
    overrides = [f"model.path={stories}", f"run.directory={run}", "task.chat=true"]
    with pytest.raises(SystemExit) as ended, wiring.clear_errors():
        train.train(choose(load_config(STORIES, overrides)))
    assert ended.value.code == os.EX_CONFIG
    told = capsys.readouterr().err
    assert "2 things have to be changed" in told, told
    assert "has no chat template; set task.chat to false" in told
    assert "holds neither model.safetensors nor" in told
    assert not run.exists()


def test_processes_of_a_job_do_not_repeat_its_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = load_config(DEMO, [f"run.directory={tmp_path / 'run'}"])
    paths = wiring.run_paths(config)
    paths.config.parent.mkdir(parents=True)
    paths.config.write_text("as it was looked at")
    monkeypatch.setenv("WEIR_LOOKED_AT", "")  # put back afterwards
    looks: list[str] = []
    monkeypatch.setattr(before_start, "look", lambda part, *_, **__: looks.append(part) or [])
    before_start.looked(paths)
    before_start.preflight("rollout", config, paths)
    assert looks == []
    before_start.preflight("evaluate", config, paths, model_dir=tmp_path)  # of another model folder
    paths.config.write_text("changed since")
    before_start.preflight("rollout", config, paths)
    before_start.looked(paths)
    at, mark = os.environ["WEIR_LOOKED_AT"].split()
    for wrong in (f"{int(at) - 3600} {mark}", f"{int(at) + 3600} {mark}", f"{at} ", "", "yesterday"):
        monkeypatch.setenv("WEIR_LOOKED_AT", wrong)
        before_start.preflight("learner", config, paths)
    assert looks == ["evaluate", "rollout"] + ["learner"] * 5


def test_a_dry_run_shows_it_all_and_writes_nothing(
    stories: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGPASSWORD", "hunter2")
    monkeypatch.chdir(tmp_path)
    overrides = [f"model.path={stories}", "learner.hosts.count=2", "serving.port=23450", "serving.replicas=3"]
    before = sorted(tmp_path.rglob("*"))
    assert train.train(choose(load_config(STORIES, [*overrides, "learner.peak_tflops=1.5"])), dry=True) == 0
    shown = capsys.readouterr().out
    assert "peak_tflops = 1.5" in shown
    assert "max_restarts = 3" in shown, "defaults are shown too"
    for command in ("tools.serve", "tools.learner", "tools.rollout", "tools.convert"):
        assert f"-m {command} " in shown
    assert "learner.hosts.index=1" in shown
    assert "3 x vllm.entrypoints.openai.api_server on 127.0.0.1, ports 23450 to 23452" in shown
    assert "PGPASSWORD" in shown
    assert "hunter2" not in shown
    assert str(tmp_path / "runs" / "stories" / "state.db") in shown
    assert "nothing was started and nothing was written" in shown
    assert sorted(tmp_path.rglob("*")) == before


def test_a_dry_run_of_what_cannot_start_shows_everything_and_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = [f"run.directory={tmp_path / 'run'}", "rollout.max_prompt_tokens=2"]
    with pytest.raises(PreflightError, match="all of"):
        train.train(choose(load_config(DEMO, overrides)), dry=True)
    shown = capsys.readouterr().out
    assert "ERROR   rollout.max_prompt_tokens" in shown
    assert "# would be started" in shown


def test_secrets_are_not_shown() -> None:
    tree = {
        "store": {"database": "postgresql://me:hunter2@host/db", "blobs": "/a"},
        "task": {"options": {"api_key": "hunter2", "name": "x", "nested": {"Password": "hunter2"}}},
        "serving": {"extra_args": ["--api-key", "hunter2", "--seed", "5", "--token=hunter2"]},
    }
    shown = redacted(tree)
    assert "hunter2" not in json.dumps(shown)
    assert shown["store"] == {"database": "postgresql://me:<hidden>@host/db", "blobs": "/a"}
    assert "--seed" in json.dumps(shown)
    assert variables({"PGPASSWORD": "x", "HOME": "y", "JAX_PLATFORMS": "z"}) == ["JAX_PLATFORMS", "PGPASSWORD"]
