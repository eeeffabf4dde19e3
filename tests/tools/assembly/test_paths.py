"""What every command does before its own work: a run directory that nobody else can look into."""

from __future__ import annotations

from pathlib import Path

import pytest

from configs.load import load_config
from tests.conftest import REPOSITORY
from tools.assembly import make_private_directory, run_paths

DEMO = REPOSITORY / "configs" / "demo.toml"


def test_a_run_directory_is_its_users_alone(tmp_path: Path):
    paths = run_paths(load_config(DEMO, [f"run.directory={tmp_path / 'runs' / 'mine'}"]))
    make_private_directory(paths)
    (paths.logs / "answers.log").write_text("what a user asked")
    for path in (paths.directory, paths.logs, paths.logs / "answers.log"):
        assert path.stat().st_mode & 0o077 == 0, path


@pytest.mark.parametrize(("before", "after"), [(0o755, 0o700), (0o777, 0o700), (0o750, 0o750), (0o700, 0o700)])
def test_one_that_was_open_to_all_is_closed(tmp_path: Path, before: int, after: int):
    run = tmp_path / "run"
    run.mkdir()
    run.chmod(before)
    make_private_directory(run_paths(load_config(DEMO, [f"run.directory={run}"])))
    assert run.stat().st_mode & 0o777 == after
