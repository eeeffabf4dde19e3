"""A run through XManager: its plan, what is refused, and a real launch without Docker where XManager is installed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from configs.load import load_config
from configs.schema import Config
from tests.conftest import REPOSITORY
from tests.support.shown_commands import parsed
from tests.support.whole_jobs import SMALL_DEMO, environment
from tools.assembly import run_paths
from tools.assembly.run_directory import choose
from tools.launch.started import LaunchError
from tools.launch.xmanager_backend import XManager, plan

ROLES = (
    *(
        f"launch.{role}.{text}"
        for role in ("learner", "rollout", "fleet")
        for text in ("cpus=4", "memory_gib=8", "image=r.example/weir:1")
    ),
    *("launch.learner.devices=4", "launch.learner.device=tpu", "launch.learner.device_type=tpu_v5p"),
    *("launch.learner.topology=2x2x1", "launch.fleet.hosts=2", "launch.fleet.devices=8"),
    *("launch.fleet.device_type=h100", "launch.rollout.variables.JUDGE_API_KEY=env:JUDGE"),
)


def a_run(tmp_path: Path, *overrides: str) -> Config:
    return load_config("demo", [f"run.directory={tmp_path / 'run'}", *ROLES, *overrides])


def test_a_plan_has_a_job_for_each_role_and_one_for_the_whole_run(tmp_path: Path) -> None:
    config = a_run(tmp_path)
    found = plan(config, run_paths(config))
    assert found["local"] == [sys.executable, "-P", "-m", "tools.train", "--resume", str(tmp_path / "run")]
    jobs = {job["name"]: job for job in found["jobs"]}
    assert {name: job["hosts"] for name, job in jobs.items()} == {"fleet": 2, "learner": 1, "rollout": 1}
    for job in jobs.values():
        python, *flags, module = job["command"][:4]
        assert (python, flags) == ("python", ["-P", "-m"])
        parsed(module, module, job["command"][4:], is_whole=True)
    assert (jobs["learner"]["device_type"], jobs["learner"]["topology"]) == ("tpu_v5p", "2x2x1")
    assert (jobs["fleet"]["device_type"], jobs["fleet"]["devices"]) == ("h100", 8)


def test_a_dry_run_prints_the_plan_and_no_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("JUDGE", "hunter2")
    assert XManager().start(choose(a_run(tmp_path)), dry=True) == 0
    shown = capsys.readouterr().out
    assert json.loads(shown)["run"] == "demo"
    assert "hunter2" not in shown
    assert not (tmp_path / "run").exists()


def test_without_xmanager_on_this_host_that_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE", "x")
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(LaunchError, match="xmanager is not installed here"):
        XManager().start(choose(a_run(tmp_path)), dry=False)
    assert not (tmp_path / "run").exists()


@pytest.mark.soak
@pytest.mark.timeout(900)
@pytest.mark.skipif(shutil.which("xmanager") is None, reason="xmanager is not on the PATH (an environment of its own)")
def test_a_run_launched_by_xmanager_without_docker_finishes(tmp_path: Path) -> None:
    fake = "serving.server_module=tools.testing.fake_vllm.server"
    told = (*SMALL_DEMO, *ROLES, fake, "learner.steps=4", "evaluation.every=0", f"run.directory={tmp_path / 'run'}")
    done = subprocess.run(
        [sys.executable, "-m", "tools.launch", "--on", "xmanager", "--config", "demo"]
        + [part for override in told for part in ("--set", override)],
        cwd=REPOSITORY,
        env=environment() | {"PYTHONPATH": str(REPOSITORY), "JUDGE": "hunter2", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=800,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert (tmp_path / "run" / "summary.json").exists(), done.stdout[-3000:]


@pytest.mark.soak
@pytest.mark.skipif(shutil.which("xmanager") is None, reason="xmanager is not on the PATH (an environment of its own)")
def test_xmanager_knows_every_requirement_of_a_plan(tmp_path: Path) -> None:
    config = a_run(tmp_path)
    (tmp_path / "plan.json").write_text(json.dumps(plan(config, run_paths(config))))
    code = (
        "import json, sys; sys.path.insert(0, sys.argv[2]); from xmanager import xm; import xm_launch;"
        "found = [xm_launch.requirements(job).task_requirements for job in json.load(open(sys.argv[1]))['jobs']];"
        "print(sorted(key.name + '=' + str(value) for one in found for key, value in one.items()))"
    )
    python = Path(os.path.realpath(shutil.which("xmanager") or "")).with_name("python")
    done = subprocess.run(
        [python, "-c", code, str(tmp_path / "plan.json"), str(REPOSITORY / "tools" / "launch")],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "H100=8" in done.stdout, done.stderr
    assert "TPU_V5P=4" in done.stdout, done.stdout
