"""The processes of a job get what its settings say."""

from __future__ import annotations

from pathlib import Path

from configs.load import load_config
from tests.conftest import REPOSITORY
from tools.assembly import planned, run_paths

DEMO = REPOSITORY / "configs" / "demo.toml"
OWN = ["model.create=none", "warm_start=none", f"model.path={REPOSITORY}", "model.family=own:FAMILY"]


def test_the_conversion_at_the_end_knows_the_family(tmp_path: Path) -> None:
    for overrides, told in (([], []), (OWN, ["--family", "own:FAMILY"])):
        config = load_config(DEMO, [f"run.directory={tmp_path / 'run'}", *overrides])
        (command,) = next(found for found in planned(config, run_paths(config)) if found.name == "convert").commands
        assert command[command.index("--dtype") + 2 :] == told
