"""SLURM's own commands, asked as a person asks them: sbatch, squeue, scontrol, scancel."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping, Sequence

from configs.schema import Config
from learner_jax.runtime import printable
from serving_bridge.processes import process_environment
from tools.assembly import variables_to_hand_on
from tools.launch.started import LaunchError

_LIMIT_S = 60.0
_JOB = re.compile(r"[0-9]{1,10}")
_GONE = "Invalid job id"


class SlurmError(LaunchError):
    """SLURM refused, or did not answer; carries its own words."""

    can_heal = True


def asked(command: Sequence[str], *, environment: Mapping[str, str] | None = None, text: str = "") -> str:
    """What one of SLURM's commands answers.

    Raises:
      SlurmError: it failed, is not installed, or took longer than a minute.
    """
    try:
        done = subprocess.run(
            command, env=environment, input=text, capture_output=True, text=True, timeout=_LIMIT_S, check=False
        )
    except FileNotFoundError:
        raise SlurmError(f"{command[0]} is not installed here: launch from a host of the cluster") from None
    except subprocess.TimeoutExpired:
        raise SlurmError(f"{command[0]} did not answer within {_LIMIT_S:g} s: is SLURM's controller up?") from None
    if done.returncode:
        raise SlurmError(f"{command[0]} refused: {printable(done.stderr.strip() or done.stdout.strip())}")
    return done.stdout.strip()


def submission_environment(config: Config, environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """What a job gets of the launching process: what processes of a run get, and the variables that roles refer to."""
    also = (*config.serving.environment, *variables_to_hand_on(config))
    own = process_environment(environment, also)
    return {name: value for name, value in own.items() if not name.startswith("SLURM_") or name == "SLURM_CONF"}


def submit(script: str, config: Config, *, test_only: bool = False) -> str:
    """Submits a job; returns its id (of a job that is only tested, what sbatch says).

    Raises:
      SlurmError: SLURM refuses it.
    """
    options = ["--test-only"] if test_only else ["--parsable"]
    answer = asked(["sbatch", *options], environment=submission_environment(config), text=script)
    if test_only:
        return answer
    job = answer.partition(";")[0]
    if not _JOB.fullmatch(job):
        raise SlurmError(f"sbatch answered {answer[:200]!a}, expected the id of a job")
    return job


def states(job: str) -> list[tuple[str, str, str]]:
    """(state, hosts, reason) of each component of a job that SLURM still knows."""
    try:
        answer = asked(["squeue", f"--jobs={job}", "--noheader", "--states=all", "--format=%T|%N|%r"])
    except SlurmError as error:
        if _GONE in str(error):
            return []
        raise
    rows = [line.split("|") for line in answer.splitlines()]
    return [(row[0], row[1], row[2]) for row in rows if len(row) == 3]


def ask_to_stop(job: str) -> None:
    """Has the job's program save and end; a job that does not run yet is cancelled."""
    if all(state == "PENDING" for state, _, _ in states(job)):
        asked(["scancel", job])
    else:
        asked(["scancel", "--batch", "--signal=TERM", job])


def requeue(job: str) -> None:
    """Queues a running job again, which ends it."""
    asked(["scontrol", "requeue", job])


def node_address(node: str) -> str:
    """The address by which SLURM reaches a host; its name where SLURM says nothing else."""
    try:
        found = re.search(r"\bNodeAddr=(\S+)", asked(["scontrol", "show", "node", node, "--oneliner"]))
    except SlurmError:
        return node
    return found[1] if found else node
