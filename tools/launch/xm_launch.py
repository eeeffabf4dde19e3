"""Launches a run by XManager, from the plan that `tools.launch --on xmanager` writes.

    xmanager launch tools/launch/xm_launch.py -- --plan RUN/xm_plan.json [--executor kubernetes]

On this machine the whole run is one job, a prebuilt program: no Docker is needed. On a cluster each role is a job of
one group, in its image, with its CPUs, memory, GPUs or TPUs. Imports XManager and the standard library alone, so that
it runs where XManager is installed and Weir is not.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Sequence
from typing import Any

from absl import app, flags
from xmanager import xm, xm_local

_PLAN = flags.DEFINE_string("plan", None, "file that tools.launch wrote", required=True)
_EXECUTOR = flags.DEFINE_enum("executor", "local", ["local", "kubernetes"], "where the jobs run")


def requirements(job: dict[str, Any]) -> xm.JobRequirements:
    """What a job asks of a cluster; a TPU by its topology, a GPU by its number."""
    wanted: dict[str, Any] = {"cpu": job["cpus"], "ram": job["memory_gib"] * xm.GiB}
    if job["devices"]:
        wanted[job["device_type"]] = job["topology"] or job["devices"]
    return xm.JobRequirements(replicas=job["hosts"], **wanted)


def local_job(experiment: xm.Experiment, plan: dict[str, Any]) -> xm.Job:
    """The whole run as one program of this machine."""
    program, *arguments = plan["local"]
    (executable,) = experiment.package(
        [xm.Packageable(executable_spec=xm.Binary(path=program), executor_spec=xm_local.Local.Spec())]
    )
    return xm.Job(executable=executable, executor=xm_local.Local(), args=arguments, name=plan["run"])


def cluster_jobs(experiment: xm.Experiment, plan: dict[str, Any]) -> xm.JobGroup:
    """One job a role."""
    spec = xm_local.Kubernetes.Spec()
    containers = [xm.Container(image_path=job["image"]) for job in plan["jobs"]]
    packaged = experiment.package([xm.Packageable(executable_spec=one, executor_spec=spec) for one in containers])
    return xm.JobGroup(
        **{
            job["name"]: xm.Job(
                executable=executable,
                executor=xm_local.Kubernetes(requirements=requirements(job)),
                args=job["command"],
                name=job["name"],
            )
            for job, executable in zip(plan["jobs"], packaged, strict=True)
        }
    )


def main(_: Sequence[str]) -> None:
    plan = json.loads(pathlib.Path(_PLAN.value).read_text(encoding="utf-8"))
    with xm_local.create_experiment(experiment_title=plan["run"]) as experiment:
        build = local_job if _EXECUTOR.value == "local" else cluster_jobs
        experiment.add(build(experiment, plan))


if __name__ == "__main__":
    app.run(main)
