"""Whether vLLM knows the options of `serving.engine_args`, asked before any server is started."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from learner_jax.runtime import cache_folder, write_whole
from serving_bridge.processes import child_environment, python_module, with_own_packages
from serving_bridge.settings import VLLM_MODULE, ServingSettings
from serving_bridge.vllm.server_checks import Platform, ReplicaStartError, engine_version
from serving_bridge.vllm.server_options import server_command
from serving_bridge.vllm_plugin import OPTION_CHECK, OPTION_VERDICT

#: a port that any server could be told, for a command line that no server gets
_ANY_PORT = 8000
#: Loading vLLM takes seconds, on a busy machine or from a network disk minutes.
_LIMIT_S = 300.0


class EngineArgsError(ReplicaStartError):
    """vLLM does not take the options of serving.engine_args."""

    can_heal = False


def check_engine_args(
    model_dir: Path, settings: ServingSettings, platform: Platform, environment: Mapping[str, str] = os.environ
) -> None:
    """Asks vLLM in a process of its own; what it took once, in this version for this model, is not asked again.

    Other servers than vLLM's are not asked.

    Raises:
      EngineArgsError: vLLM does not take them, in its own words.
      ReplicaStartError: vLLM could not be asked, or an option can't be given on this platform.
    """
    if not settings.engine_args or settings.server_module != VLLM_MODULE:
        return
    command = server_command(model_dir, settings, platform, _ANY_PORT)
    arguments = command[command.index(VLLM_MODULE) + 1 :]
    taken = _taken_file(arguments, model_dir, environment)
    if taken.is_file():
        return
    if said := _asked(arguments, settings, environment):
        raise EngineArgsError(f"serving.engine_args: vLLM {engine_version()} does not take them: {said}")
    taken.parent.mkdir(parents=True, exist_ok=True)
    write_whole(taken, b"")


def _asked(arguments: Sequence[str], settings: ServingSettings, environment: Mapping[str, str]) -> str:
    """What vLLM says against them; empty if it takes them."""
    told = {
        **with_own_packages(child_environment(environment, settings.environment)),
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
    }
    try:
        done = subprocess.run(
            [*python_module(OPTION_CHECK), *arguments],
            env=told,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_LIMIT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ReplicaStartError(f"serving.engine_args: vLLM could not be asked about them: {error}") from error
    _, found, verdict = done.stdout.rpartition(f"\n{OPTION_VERDICT}")
    if not found:
        tail = "\n".join(f"{done.stdout}\n{done.stderr}".strip().splitlines()[-10:])
        raise ReplicaStartError(
            f"serving.engine_args: vLLM could not be asked about them, it ended with status {done.returncode}:\n{tail}"
        )
    return str(json.loads(verdict))


def _taken_file(arguments: Sequence[str], model_dir: Path, environment: Mapping[str, str]) -> Path:
    """There once vLLM has taken these arguments; its name stands for all that the verdict depends on."""
    config = model_dir / "config.json"
    model = config.read_bytes() if config.is_file() else b""
    known = [engine_version(), *(word for word in arguments if word != str(model_dir))]
    name = hashlib.sha256(json.dumps(known).encode() + model).hexdigest()
    return cache_folder(environment) / "engine_args" / name
