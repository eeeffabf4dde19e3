"""What all jobs share: the model they begin from, compiled programs, and the skill of a run without faults."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from configs.load import load_config, parse_config, save_config
from configs.schema import Config
from learner_jax.runtime import WeirError
from serving_bridge.processes import process_environment, python_module
from tools.testing.chaos.engines import ENGINES, EngineName
from tools.testing.chaos.inject import environment

CONFIG = Path(__file__).parent / "job.toml"


class PrepareError(WeirError, RuntimeError):
    """The jobs' model could not be made."""


def prepared_model(work: Path) -> Path:
    """The weak model that every job begins from: made by a supervised start once, kept in `work`."""
    folder = work / f"prepared-{hashlib.sha256(CONFIG.read_bytes()).hexdigest()[:12]}"
    model = folder / "start_model"
    if not model.exists():
        folder.mkdir(parents=True, exist_ok=True)
        command = [*python_module("tools.learner"), "--config", str(CONFIG), "--warm-start"]
        told = [*command, "--set", f"run.directory={folder}"]
        done = subprocess.run(told, env=job_environment(work, folder, "fake"), capture_output=True, text=True)
        if done.returncode:
            raise PrepareError(f"{' '.join(told)} ended with status {done.returncode}: {done.stderr[-2000:]}")
    return model


def job_environment(work: Path, folder: Path, engine: EngineName, patch: Path | None = None) -> dict[str, str]:
    """The whole environment of a job's processes; they share the cache of compiled programs."""
    cache = {"JAX_COMPILATION_CACHE_DIR": str(work / "compiled")}
    return {**process_environment(os.environ), **cache, **environment(folder, ENGINES[engine].module, patch)}


def job_config(model: Path, folder: Path, engine: EngineName, overrides: Sequence[str]) -> Config:
    """The settings of the job in a folder, saved there; it begins from a model that is there already."""
    tree = load_config(CONFIG, [*ENGINES[engine].settings, *overrides]).model_dump(mode="json", exclude_none=True)
    del tree["warm_start"], tree["model"]["create"]
    tree["model"]["path"] = str(model)
    tree["run"]["directory"] = str(folder / "run")
    tree["store"]["database"] = str(folder / "run" / "database" / "state.db")
    tree["serving"]["server_module"] = "tools.testing.chaos.server"
    config = parse_config(tree, origin=str(CONFIG))
    (folder / "run" / "logs").mkdir(parents=True, exist_ok=True)
    save_config(config, folder / "run" / "config.toml")
    return config


def remembered_skill(work: Path, key: str) -> int | None:
    """Right answers that a run without faults reached, if one was made with these settings."""
    try:
        found: int = json.loads((work / "clean.json").read_text())[key]
    except (FileNotFoundError, KeyError):
        return None
    return found


def remember_skill(work: Path, key: str, correct: int) -> None:
    path = work / "clean.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(known | {key: correct}))
