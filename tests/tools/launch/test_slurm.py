"""A run as a job of SLURM: its components and script, checked line by line; its steps; what is refused before."""

from __future__ import annotations

import os
import re
import stat
import sys
from pathlib import Path

import pytest

from configs.load import load_config
from configs.schema import Config
from tests.support.shown_commands import parsed
from tools.assembly import planned, run_paths
from tools.assembly.before_start import PreflightError
from tools.launch import on_slurm, slurm_commands
from tools.launch.checks import require_launchable
from tools.launch.slurm import SlurmPlacement, components, script
from tools.launch.slurm_backend import Slurm
from tools.launch.slurm_commands import SlurmError
from tools.launch.started import LaunchError, Started

SHARED = "/shared"
ROLES = (
    f'launch.shared=["{SHARED}"]',
    *(f"launch.{role}.{text}" for role in ("learner", "rollout", "fleet") for text in ("cpus=4", "memory_gib=8")),
    "learner.hosts.count=2",
    "launch.learner.devices=8",
    "launch.learner.device_type=h100",
    "launch.rollout.beside=learner",
    "launch.fleet.hosts=3",
    "launch.fleet.devices=2",
    'launch.fleet.options=["--partition=serve"]',
    "launch.fleet.venv=/shared/vllm",
    "launch.rollout.variables.JUDGE_API_KEY=env:JUDGE",
    "store.database=postgresql://weir@db/weir",
)
#: options of sbatch that a script of ours may have, each with the form of its value
DIRECTIVES = {
    "job-name": r"weir-[\w.-]+",
    "chdir": r"/\S+",
    "output": r"/\S+/slurm-%j\.log",
    "open-mode": "append",
    "requeue": "",
    "export": "ALL",
    "signal": r"B:USR1@\d+",
    "nodes": r"\d+",
    "ntasks-per-node": "1",
    "cpus-per-task": r"\d+",
    "mem": r"\d+G",
    "time": r"\d+",
    "gres": r"(gpu|tpu)(:[\w.-]+)?:\d+(,.*)?",
    "partition": r"\w+",
}


def a_run(*overrides: str, directory: str = f"{SHARED}/run") -> Config:
    return load_config("demo", [f"run.directory={directory}", *ROLES, *overrides])


def steps(config: Config) -> dict[str, list[list[str]]]:
    place = SlurmPlacement(config, run_paths(config), address="node7")
    return {process.name: process.commands for process in planned(config, run_paths(config), place=place)}


def test_roles_that_share_hosts_are_one_component_and_the_learners_come_first() -> None:
    learner, fleet = components(a_run())
    assert (learner.roles, learner.hosts, learner.cpus, learner.memory_gib) == (("learner", "rollout"), 2, 8, 16)
    assert (fleet.roles, fleet.hosts, fleet.cpus, fleet.memory_gib) == (("fleet",), 3, 4, 8)
    assert (learner.gres, fleet.gres) == ("gpu:h100:8", "gpu:2")
    together = components(a_run("launch.fleet.beside=learner", "launch.fleet.hosts=1", "launch.fleet.options=[]"))
    assert [one.gres for one in together] == ["gpu:2,gpu:h100:8"]


def test_the_script_is_what_sbatch_takes() -> None:
    config = a_run("launch.time_limit_s=3601", "launch.stop_ahead_s=90.5")
    first, *lines = script(config, run_paths(config)).splitlines()
    assert first == "#!/bin/bash"
    parts = "\n".join(line for line in lines if not line.startswith("# ")).split("#SBATCH hetjob\n")
    assert len(parts) == 2
    for part in parts:
        for line in part.splitlines():
            found = re.fullmatch(r"#SBATCH --([a-z-]+)(?:=(\S+))?", line)
            if found is None:
                assert line.startswith(("trap '' USR1 ", "exec "))
                assert part is parts[-1]
                continue
            assert re.fullmatch(DIRECTIVES[found[1]], found[2] or ""), line
    assert "--time=61\n" in parts[0]
    assert "--signal=B:USR1@91\n" in parts[0]
    assert "#SBATCH --partition=serve" in parts[1]
    assert "JUDGE" not in script(config, run_paths(config))


def test_every_step_is_placed_and_its_command_is_one_that_weir_takes(capsys: pytest.CaptureFixture[str]) -> None:
    config = a_run()
    found = steps(config)
    assert list(found) == [
        *("serve-0", "serve-1", "serve-2", "warm_start", "learner", "rollout", "convert", "evaluate"),
    ]
    assert [len(commands) for commands in found.values()] == [1, 1, 1, 1, 2, 1, 1, 1]
    places = []
    for commands in found.values():
        for command in commands:
            srun, guard, role, program = _split(command)
            group = next(part for part in srun if part.startswith("--het-group="))
            host = next(part for part in srun if part.startswith("--relative="))
            places.append((program[3], group[-1], host[-1]))
            assert guard[1:4] == ["-P", "-m", "serving_bridge.processes"]
            assert role[1:4] == ["-P", "-m", "tools.role"]
            assert "/shared/run/config.toml" in role
            python = "/shared/vllm/bin/python" if group[-1] == "1" else sys.executable
            assert {guard[0], role[0], program[0]} == {python}
            if program[3] != "tools.launch.last_evaluation":
                parsed(program[3], program[3], program[4:], is_whole=True)
    assert places == [
        *(("tools.serve", "1", str(host)) for host in range(3)),
        ("tools.learner", "0", "0"),
        *(("tools.learner", "0", str(host)) for host in range(2)),
        ("tools.rollout", "0", "0"),
        ("tools.convert", "0", "0"),
        ("tools.launch.last_evaluation", "1", "0"),
    ]


def _split(command: list[str]) -> tuple[list[str], list[str], list[str], list[str]]:
    """srun, guard, role and program of a step."""
    ends = [number for number, part in enumerate(command) if part == "--"]
    start = next(number for number, part in enumerate(command) if part.endswith("/python"))
    return command[:start], command[start : ends[0]], command[ends[0] + 1 : ends[1]], command[ends[1] + 1 :]


def test_the_learner_takes_all_gpus_of_its_host_and_a_fleet_binds_its_own_address() -> None:
    found = steps(a_run())
    for command in found["learner"]:
        assert "JAX_LOCAL_DEVICE_IDS=0,1,2,3,4,5,6,7" in command
        assert "--gres=gpu:h100:8" in command
    assert not any("JAX_LOCAL" in part for part in found["serve-0"][0])
    assert "serving.host={address}" in found["serve-1"][0]
    assert found["serve-1"][0][-4:-2] == ["--name", "fleet-1"]


def test_without_other_hosts_the_job_is_a_plain_one() -> None:
    config = a_run("launch.fleet.beside=learner", "launch.fleet.hosts=1", "launch.fleet.options=[]")
    assert "hetjob" not in script(config, run_paths(config))
    assert not any("--het-group" in part for part in steps(config)["learner"][0])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["launch.rollout=none"], r"launch\.rollout: expected a table with cpus and memory_gib, got none; add"),
        (["launch.shared=[]"], r"launch\.shared: expected the folders that all hosts see"),
        (["store.weights=/elsewhere/w"], r"store\.weights: expected to lie in .*\(/shared\), got /elsewhere/w"),
        (["run.directory=/home/me/run"], r"run\.directory: expected to lie in .*got /home/me/run"),
        (["run.directory=/shared/a b"], r"run\.directory: expected letters, digits"),
        (["store.database="], r"store\.database: expected postgresql://.*got the SQLite file"),
        (["launch.rollout.image=x:1"], r"launch\.rollout\.image: expected a venv on SLURM"),
        (["learner.hosts.coordinator=a:1"], r"learner\.hosts\.coordinator: expected to be empty"),
        (["launch.rollout.variables.A=env:NOT_SET_HERE"], r"rollout\.variables\.A: .*NOT_SET_HERE"),
    ],
)
def test_what_cannot_run_is_told_before_a_job_is_submitted(
    cluster: Path, monkeypatch: pytest.MonkeyPatch, overrides: list[str], message: str
) -> None:
    monkeypatch.setenv("JUDGE", "x")
    config = a_run(*overrides)
    with pytest.raises(PreflightError, match=message):
        require_launchable(config, run_paths(config), "slurm")
    require_launchable(a_run(), run_paths(a_run()), "slurm")


def test_without_slurm_on_this_host_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE", "x")
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(PreflightError, match="launch from a host of the cluster"):
        require_launchable(a_run(), run_paths(a_run()), "slurm")


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose programs stand for SLURM's: each notes how it is called, and prints what a file says."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("sbatch", "squeue", "scancel", "scontrol"):
        program = folder / name
        program.write_text(
            f'#!/bin/bash\necho "{name} $*" >> {folder}/calls\n'
            f"[ {name} = sbatch ] && cat > {folder}/script && env > {folder}/environment\n"
            f"cat {folder}/{name}.out 2>/dev/null\ncat {folder}/{name}.err >&2 2>/dev/null && exit 1\nexit 0\n"
        )
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


def test_a_job_gets_the_variables_that_roles_refer_to_and_no_other_secret(
    cluster: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"JUDGE": "hunter2", "OTHER_TOKEN": "hunter3", "SLURM_JOB_ID": "9", "SLURM_CONF": "/c"}.items():
        monkeypatch.setenv(name, value)
    (cluster / "sbatch.out").write_text("123;cluster\n")
    config = a_run()
    assert slurm_commands.submit(script(config, run_paths(config)), config) == "123"
    given = dict(line.partition("=")[::2] for line in (cluster / "environment").read_text().splitlines())
    assert given["JUDGE"] == "hunter2"
    assert given["SLURM_CONF"] == "/c"
    assert "SLURM_JOB_ID" not in given
    assert "hunter3" not in (cluster / "environment").read_text()
    assert (cluster / "script").read_text() == script(config, run_paths(config))


def test_what_slurm_refuses_is_told_in_its_words(cluster: Path) -> None:
    (cluster / "sbatch.err").write_text("sbatch: error: invalid partition \x1b[31m\n")
    with pytest.raises(SlurmError, match=r"sbatch refused: sbatch: error: invalid partition \\x1b"):
        slurm_commands.submit("", a_run())
    (cluster / "sbatch.err").unlink()
    (cluster / "sbatch.out").write_text("no id\n")
    with pytest.raises(SlurmError, match="sbatch answered 'no id', expected the id"):
        slurm_commands.submit("", a_run())


@pytest.mark.parametrize(
    ("answer", "call"),
    [
        ("RUNNING|n[1-2]|None\nRUNNING|n3|None\n", "scancel --batch --signal=TERM 7"),
        ("PENDING||Resources\nPENDING||Resources\n", "scancel 7"),
    ],
)
def test_a_running_job_is_asked_to_save_and_a_waiting_one_is_cancelled(
    cluster: Path, tmp_path: Path, answer: str, call: str
) -> None:
    config = a_run(directory=str(tmp_path / "run"))
    paths = run_paths(config)
    paths.directory.mkdir()
    Started("slurm", "7").write(paths)
    (cluster / "squeue.out").write_text(answer)
    assert Slurm().stop(paths) == "asked job 7 to save and end"
    assert (cluster / "calls").read_text().splitlines()[-1] == call


def test_a_job_that_is_over_is_not_stopped_and_one_that_runs_is_not_doubled(cluster: Path, tmp_path: Path) -> None:
    paths = run_paths(a_run(directory=str(tmp_path / "run")))
    paths.directory.mkdir()
    Started("slurm", "7").write(paths)
    (cluster / "squeue.err").write_text("slurm_load_jobs error: Invalid job id specified\n")
    with pytest.raises(LaunchError, match="job 7 has ended"):
        Slurm().stop(paths)
    Slurm()._require_idle(paths)
    (cluster / "squeue.err").unlink()
    (cluster / "squeue.out").write_text("RUNNING|n1|None\n")
    with pytest.raises(LaunchError, match="job 7 works on"):
        Slurm()._require_idle(paths)


def test_a_jobs_time_is_a_request_to_stop_that_queues_it_again(
    cluster: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SLURM_RESTART_COUNT", "3")
    assert on_slurm._queued_again(a_run("launch.max_requeues=3"), "7") == 130
    assert "resume it yourself" in capsys.readouterr().out
    assert not (cluster / "calls").exists()
    monkeypatch.setattr(on_slurm, "_END_S", 0.1)
    with pytest.raises(LaunchError, match="the end of this job"):
        on_slurm._queued_again(a_run("launch.max_requeues=4"), "7")
    assert (cluster / "calls").read_text() == "scontrol requeue 7\n"


def test_an_address_is_slurms_own(cluster: Path) -> None:
    (cluster / "scontrol.out").write_text("NodeName=n1 Arch=x86_64 NodeAddr=10.1.2.3 NodeHostName=n1\n")
    assert slurm_commands.node_address("n1") == "10.1.2.3"
    (cluster / "scontrol.err").write_text("down\n")
    assert slurm_commands.node_address("n1") == "n1"
