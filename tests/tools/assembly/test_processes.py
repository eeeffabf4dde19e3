"""The processes of a job get what its settings say."""

from __future__ import annotations

from pathlib import Path

import pytest

from configs.load import ConfigError, load_config
from tests.conftest import REPOSITORY
from tools.assembly import planned, run_paths

DEMO = REPOSITORY / "configs" / "demo.toml"
OWN = ["model.create=none", "warm_start=none", f"model.path={REPOSITORY}", "model.family=own:FAMILY"]


def test_the_conversion_at_the_end_knows_the_family(tmp_path: Path) -> None:
    for overrides, told in (([], []), (OWN, ["--family", "own:FAMILY"])):
        config = load_config(DEMO, [f"run.directory={tmp_path / 'run'}", *overrides])
        (command,) = next(found for found in planned(config, run_paths(config)) if found.name == "convert").commands
        assert command[command.index("--dtype") + 2 :] == told


def test_the_first_hosts_of_replicas_lead_fleets_and_the_others_join_them(tmp_path: Path) -> None:
    several = ["serving.hosts_per_replica=2", "serving.pipeline_parallel_size=2", "launch.fleet.hosts=4"]
    roles = [*several, "launch.fleet.cpus=1", "launch.fleet.memory_gib=1", f"run.directory={tmp_path / 'run'}"]
    config = load_config(DEMO, roles)
    fleets = [found.commands[0] for found in planned(config, run_paths(config)) if found.role == "fleet"]
    assert [command[command.index("--name") :] for command in fleets] == [
        ["--name", "fleet-0"],
        ["--name", "fleet-0", "--further-host", "1"],
        ["--name", "fleet-1"],
        ["--name", "fleet-1", "--further-host", "1"],
    ]
    with pytest.raises(ConfigError, match=r"launch\.fleet\.hosts is 3 and serving\.hosts_per_replica 2"):
        load_config(DEMO, [*roles, "launch.fleet.hosts=3"])


def test_supervised_training_runs_on_all_hosts_of_the_learner_and_a_start_from_nothing_on_the_first(
    tmp_path: Path,
) -> None:
    given = [f"run.directory={tmp_path / 'run'}", "learner.hosts.count=2", "learner.hosts.coordinator=127.0.0.1:4711"]

    def commands(*overrides: str) -> list[list[str]]:
        config = load_config(DEMO, [*given, *overrides])
        return next(found for found in planned(config, run_paths(config)) if found.name == "warm_start").commands

    assert len(commands()) == 1
    table = 'supervised={{ data = "x.jsonl", steps = 1, batch_size = {size}, learning_rate = 1e-3 }}'
    two = commands("warm_start=none", table.format(size=4))
    assert [command[-1] for command in two] == ["learner.hosts.index=0", "learner.hosts.index=1"]
    assert all({"--warm-start", "learner.hosts.coordinator=127.0.0.1:4711"} <= set(command) for command in two)
    with pytest.raises(ConfigError, match=r"supervised\.batch_size is 3, expected a multiple of learner\.hosts\.count"):
        commands("warm_start=none", table.format(size=3))
