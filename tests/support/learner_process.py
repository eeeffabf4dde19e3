"""The real learner process on a queue that is filled: a run of the demo's in small, as after its supervised start."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Self

from configs.load import load_config, save_config
from tests.conftest import QUICK_COMPILE, REPOSITORY
from tests.support.learner_runs import fill
from tests.support.whole_jobs import wait_for
from tools.assembly import RunPaths, base_model_dir, build_encoder, run_paths


def demo_run(directory: Path, *changes: str, num_groups: int) -> tuple[RunPaths, list[str]]:
    """A run's folder with so many groups in its queue; returns its paths and the learner's command.

    Args:
      changes: settings, `name=value`, besides those that make it small.
    """
    small = [
        *(f"run.directory={directory}", "learner.groups_per_step=2", "rollout.group_size=2"),
        *("learner.microbatch_rows=4", "learner.peak_tflops=1", "rollout.max_staleness=1000"),
    ]
    config = load_config(REPOSITORY / "configs" / "demo.toml", [*small, *changes])
    save_config(config, directory / "config.toml")
    paths = run_paths(config)
    shutil.copytree(base_model_dir(config, paths), paths.start_model)
    encoder, model = build_encoder(config, paths.start_model)
    fill(directory, num_groups, vocabulary=model.vocab_size, tokenizer=encoder.tokenizer.fingerprint, run_name="demo")
    return paths, [sys.executable, "-m", "tools.learner", "--config", str(directory / "config.toml")]


def learner_environment() -> dict[str, str]:
    """Compiling costs more than what the small program gains by it."""
    return os.environ | {"XLA_FLAGS": QUICK_COMPILE}


class LearnerLife:
    """One life of the process; its errors are in a file."""

    def __init__(self, command: list[str], errors: Path) -> None:
        self._errors = errors
        with errors.open("ab") as output:
            self._process = subprocess.Popen(
                command, cwd=REPOSITORY, env=learner_environment(), stdout=subprocess.DEVNULL, stderr=output
            )

    def reaches(self, condition: Callable[[], bool], what: str) -> None:
        wait_for(lambda: condition() or self._process.poll() is not None, timeout_s=120, what=what)
        assert self._process.poll() is None, self._errors.read_text()

    def stops(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        assert self._process.wait(30) == 0, self._errors.read_text()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait(30)
