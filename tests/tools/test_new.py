"""`weir new` makes a folder whose run starts as it is, with a reward and data of the user's own."""

from __future__ import annotations

import compileall
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from configs.load import load_config
from rewards.contracts import RewardRequest
from tests.support.installed import installed
from tools.assembly import build_task
from tools.new import NewFolderError, main, make, problems


def test_the_folder_holds_what_its_readme_lists(tmp_path: Path) -> None:
    names = make(tmp_path / "mine")
    assert names == sorted(path.name for path in (tmp_path / "mine").iterdir())
    readme = (tmp_path / "mine" / "README.md").read_text()
    assert {*re.findall(r"^\| `(.*?)`", readme, re.MULTILINE), "README.md"} == set(names)
    for line in re.findall(r"--config (\S+)", readme):
        assert line in names


def test_the_problems_are_different_right_and_always_the_same(tmp_path: Path) -> None:
    make(tmp_path)
    lines = (tmp_path / "problems.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert len({row["question"] for row in rows}) == len(rows) == 200
    for row in rows:
        one, other = map(int, re.fullmatch(r"Calculate (\d+) \+ (\d+)\.", row["question"]).groups())
        assert int(row["answer"]) == one + other
    assert rows == problems()
    assert rows != problems(seed=1)


def test_what_is_there_is_never_overwritten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.toml").write_text("mine")
    with pytest.raises(NewFolderError, match="is not empty"):
        make(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["config.toml"]
    assert (tmp_path / "config.toml").read_text() == "mine"
    monkeypatch.setattr(sys, "argv", ["weir new", str(tmp_path / "config.toml")])
    with pytest.raises(SystemExit):
        main()
    assert capsys.readouterr().err.count("\n") == 1


def test_its_reward_scores_answers_in_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    task = build_task(load_config("config.toml"))
    try:
        problem = task.problem("train", 0)
        scores = [
            task.score(RewardRequest(problem, answer, "stop")).score
            for answer in (problem.answer, f" {problem.answer} ", f"{problem.answer}0", "", "\x00" * 10)
        ]
    finally:
        task.close()
    assert scores == [1.0, 1.0, 0.0, 0.0, 0.0]


def test_it_works_from_an_installed_weir_in_a_folder_with_modules_of_the_same_names(tmp_path: Path) -> None:
    site = installed()
    compileall.compile_dir(site / "tools" / "templates", quiet=2)  # as pip does
    script = tmp_path / "bin" / "weir"
    script.parent.mkdir()
    script.write_text("import sys\nfrom tools.command import main\nsys.exit(main())\n")

    def weir(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"PYTHONPATH": str(site)}
        command = [sys.executable, script, *arguments]
        return subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
        )

    made = weir(tmp_path, "new", "mine")
    assert made.returncode == 0, made.stderr
    mine = tmp_path / "mine"
    (mine / "rewards.py").write_text("raise SystemExit('the module of the user')")
    (mine / "tools").mkdir()
    (mine / "tools" / "__init__.py").write_text("raise SystemExit('the module of the user')")
    done = weir(mine, "train", "--config", "config.toml", "--dry-run")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "nothing was started" in done.stdout


def test_the_reward_needs_nothing_of_weir(tmp_path: Path) -> None:
    make(tmp_path)
    spec = importlib.util.spec_from_file_location("my_reward", tmp_path / "my_reward.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.exact("Calculate 1 + 2.", "3", {"answer": "3"}) == 1.0
