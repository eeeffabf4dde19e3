"""A deployment of its own for a benchmark: a run's directory with tenants, and its gateway as a process."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import psutil

from configs.load import load_config, save_config
from serving_bridge.database import open_database
from serving_bridge.routing import KEYS_FOLDER
from serving_bridge.tenants import TENANTS, Accounts, DeploymentSecret
from tools.assembly import RunPaths, build_keys, run_paths
from tools.bench import BenchmarkError

START_S, _END_S = 180.0, 60.0
_OPTIONS = ("gateway.require_keys=true", "gateway.port=0")


def make_deployment(
    folder: Path, model: Path, tenants: Mapping[str, Mapping[str, Any]], options: Sequence[str] = ()
) -> tuple[RunPaths, dict[str, str]]:
    """A run's directory, and a key for each tenant.

    Args:
      tenants: name -> limits; all are of the class paid, and consent for a day.
      options: SECTION.KEY=VALUE of its configuration.
    """
    directory = folder / "run"
    directory.mkdir()
    config = load_config("stories", [f"run.directory={directory}", f"model.path={model}", *_OPTIONS, *options])
    save_config(config, directory / "config.toml")
    paths = run_paths(config)
    build_keys(config, paths).make()
    secret = DeploymentSecret.in_folder(paths.registry / KEYS_FOLDER, make=True)
    database = open_database(paths.database, timeout_s=5.0, schema=TENANTS)
    accounts, keys = Accounts(database, secret), {}
    for name, limits in tenants.items():
        accounts.add(name, priority="paid", consent=True, retention_days=1)
        accounts.set_limits(name, limits)
        keys[name] = accounts.create_key(name).key
    database.close()
    return paths, keys


@contextmanager
def gateway_running(paths: RunPaths, *, core: int | None = None) -> Iterator[tuple[psutil.Process, str]]:
    """The gateway's process, and its address up to /v1. Raises `BenchmarkError`."""
    with program_running("tools.gateway", paths, core=core) as (process, log):
        end_s = time.monotonic() + START_S
        while not (found := re.search(r"listens at (http://\S+);", log.read_text())):
            check_alive(process, log, end_s)
            time.sleep(0.1)
        yield process, found[1]


@contextmanager
def program_running(module: str, paths: RunPaths, *, core: int | None = None) -> Iterator[tuple[psutil.Process, Path]]:
    """A program of the run, and its output; it ends with the block.

    Args:
      core: that it and its children run on; None for all.
    """
    command = [sys.executable, "-m", module, "--config", str(paths.config)]
    log = paths.directory / f"{module}.log"
    with log.open("wb") as output, nullcontext() if core is None else on_core(core):
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    try:
        yield psutil.Process(process.pid), log
    finally:
        process.terminate()
        try:
            process.wait(_END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def on_core(core: int) -> Iterator[None]:
    """Processes that are started inside run on one core alone."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def check_alive(process: psutil.Process, log: Path, end_s: float) -> None:
    """Raises `BenchmarkError` for a program that has ended, or whose time to start is over."""
    if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE or time.monotonic() > end_s:
        raise BenchmarkError(f"{log.stem} does not start; the end of its output:\n{log.read_text()[-2000:]}")


def cpu_of(process: psutil.Process) -> float:
    """CPU seconds that a process and its children have taken."""
    found = [each.cpu_times() for each in (process, *process.children(recursive=True))]
    return sum(times.user + times.system for times in found)
