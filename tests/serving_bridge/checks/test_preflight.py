"""All that can be known before a start is found at once, with the setting named."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

import pytest

from configs.load import load_config
from serving_bridge.checks.findings import Finding
from serving_bridge.checks.prompts import problem_findings
from tests.conftest import REPOSITORY
from tools import train
from tools.assembly import before_start, build_encoder, build_task, clear_errors, run_paths
from tools.assembly.before_start import PreflightError
from tools.assembly.run_directory import choose
from tools.assembly.start_checks import Part

DEMO, STORIES = (REPOSITORY / "configs" / name for name in ("demo.toml", "stories.toml"))


def findings(part: Part, config_path: Path, run: Path, *overrides: str) -> list[Finding]:
    config = load_config(config_path, [f"run.directory={run}", *overrides])
    results = before_start.look(part, config, run_paths(config))
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
    assert "has no chat template: name a chat model, or set chat = false, of [task]" in " ".join(found.values())


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
    task, sample = build_task(config), 200
    encoder, _ = build_encoder(config, stories)
    lengths = [len(encoder.tokens(task.problem("train", index))) for index in range(sample)]
    limit = max(lengths) - 1
    rollout = config.rollout.model_copy(update={"max_prompt_tokens": limit})
    encoder, _ = build_encoder(config.model_copy(update={"rollout": rollout}), stories)
    (told,) = problem_findings(task, encoder, asked={}, answer=100, train_sample=sample, limit_s=60)
    assert told.severity == "warning"
    skipped = lengths.count(limit + 1)
    assert f"{limit}: {skipped} of {sample} train prompts that were looked at are longer" in str(told)
    assert f"need {limit + 101}" in str(told)


def test_a_task_without_answers_to_imitate_is_told_before_its_supervised_start(stories: Path, tmp_path: Path) -> None:
    start = "warm_start={ target_accuracy = 0.5, max_steps = 5, batch_size = 2, learning_rate = 1e-3 }"
    found = errors("warm_start", STORIES, tmp_path / "run", f"model.path={stories}", start)
    assert "drop [warm_start]" in " ".join(found.values())


def test_a_warm_up_that_does_not_end_is_told_and_allowed(tmp_path: Path) -> None:
    for steps, told in ((9, ["learner.optimizer.warmup_steps"]), (10, [])):
        config = load_config(DEMO, [f"learner.steps={steps}", f"run.directory={tmp_path / 'run'}"])
        results = before_start.look("learner", config, run_paths(config))
        warned = [f.setting for result in results for f in result.findings if f.severity == "warning"]
        assert [setting for setting in warned if "warmup" in setting] == told


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


def test_what_may_heal_is_worth_another_try_only_alone() -> None:
    heals, stays = Finding("a", "", "x", "", may_heal=True), Finding("b", "", "y", "")
    assert PreflightError([heals]).can_heal
    assert not PreflightError([heals, stays]).can_heal
    assert str(PreflightError([stays])) == "b: y"
    assert "2 things have to be changed before this can start:\n  a: x\n  b: y" in str(PreflightError([heals, stays]))


def test_a_job_that_cannot_start_starts_nothing(
    stories: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (stories / "model.safetensors").unlink()
    run = tmp_path / "run"
    overrides = [f"model.path={stories}", f"run.directory={run}", "task.chat=true"]
    with pytest.raises(SystemExit) as ended, clear_errors():
        train.train(choose(load_config(STORIES, overrides)))
    assert ended.value.code == os.EX_CONFIG
    told = capsys.readouterr().err
    assert "2 things have to be changed" in told, told
    assert "has no chat template: name a chat model, or set chat = false, of [task]" in told
    assert "holds neither model.safetensors nor" in told
    assert not run.exists()


def test_processes_of_a_job_do_not_repeat_its_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = load_config(DEMO, [f"run.directory={tmp_path / 'run'}"])
    paths = run_paths(config)
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
