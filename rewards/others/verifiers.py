"""Tasksets, harnesses and environments of `verifiers` 0.4, played unmodified.

The library runs in an agent's process: its harness speaks to the session of one episode, its own interception server in
between. Every taskset that it can load by id works, with every harness that runs beside it.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from rewards.contracts import TaskError
from rewards.others.needed import MissingLibraryError, needed

vf: Any = needed("verifiers.v1", extra="verifiers")
_NO_KEY = "WEIR_NEEDS_NO_KEY"
_MODEL = "policy"
_MAX_PARTS = 60
#: where the harnesses that come with verifiers are; all of them are scripts that `uv` runs
_HARNESSES = "verifiers.v1.harnesses."
_SHOWN = 300


def rows(
    taskset: str, harness: str = "", turns: int | None = None, env: Mapping[str, Any] | None = None
) -> Iterator[dict[str, Any]]:
    """The tasks of a taskset as rows, for `task.data`; `task.options` are the arguments.

    Args:
      taskset: id, as in `eval <taskset>`.
      harness: id of the program that plays; the taskset's own by default.
      turns: most answers of the policy in an episode.
      env: more of the environment's settings, as in the `[env]` block of verifiers.

    Raises:
      ModuleNotFoundError, ValueError: verifiers knows no such taskset or settings.
      TaskError: it is an environment of verifiers before 0.4.
      MissingLibraryError: a harness needs `uv`, which is not installed.
    """
    try:
        settings = _settings(taskset, harness, turns, env or {})
        environment = _environment(json.dumps(settings, sort_keys=True))
    except Exception as error:
        if _is_old(taskset):
            raise TaskError(
                f"{taskset!r} is an environment of verifiers before 0.4: it has load_environment, and no Taskset. Port "
                f"it to a Taskset, or play it from an agent of your own (docs/extend/agent.md)"
            ) from error
        raise
    _check_programs(environment)
    for task in environment.taskset:
        data = task.data.model_dump(mode="json", exclude_none=True)
        yield {"question": task.data.prompt_text or str(task.data.name or task.data.idx), "task": data, "env": settings}


async def play(base_url: str, row: Mapping[str, Any]) -> dict[str, float]:
    """Plays one episode of a row, for `task.episode.agent`; its rewards by name, and their sum as "score".

    Raises:
      RuntimeError: verifiers says that the episode failed.
    """
    environment = _environment(json.dumps(row["env"], sort_keys=True))
    os.environ["PATH"] = _path()
    kind = type(environment.taskset).task_type()
    task = kind(kind.data_type().model_validate(row["task"]), environment.config.taskset.task)
    client = vf.EvalClientConfig(base_url=base_url, api_key_var=_NO_KEY)
    async with environment.serving():
        (slot,) = environment.slots(task)
        episode = await environment.run_slot(slot, vf.ModelContext(model=_MODEL, client=client))
    return _earned(episode)


def _settings(taskset: str, harness: str, turns: int | None, env: Mapping[str, Any]) -> dict[str, Any]:
    """As verifiers reads them. Programs run on this machine, where the session is."""
    kind = vf.env_config_type(taskset, str(env.get("id", "")))
    settings: dict[str, Any] = {**env, "taskset": {"id": taskset, **env.get("taskset", {})}}
    for role, field in kind.model_fields.items():
        if isinstance(field.default, vf.AgentConfig):
            seat: dict[str, Any] = {"runtime": {"type": "subprocess"}, **env.get(role, {})}
            if harness:
                seat["harness"] = {"id": harness, **seat.get("harness", {})}
            if turns is not None:
                seat.setdefault("max_turns", turns)
            settings[role] = seat
    return settings


def _is_old(taskset: str) -> bool:
    """Whether a module of this name has the door of earlier environments; it is read, not imported."""
    try:
        found = importlib.util.find_spec(taskset.rpartition("/")[2].replace("-", "_"))
        return found is not None and "def load_environment" in Path(found.origin or "").read_text(encoding="utf-8")
    except (ImportError, ValueError, OSError):
        return False


def _path() -> str:
    """PATH with the folder of this Python, where pip puts `uv`: a virtual environment need not be active."""
    path, folder = os.environ.get("PATH", os.defpath), str(Path(sys.executable).parent)
    return path if folder in path.split(os.pathsep) else os.pathsep.join((path, folder))


def _check_programs(environment: Any) -> None:
    """Raises `MissingLibraryError` where a harness would have `uv` fetched from the network by itself."""
    seats = [getattr(environment.config, role) for role in type(environment.config).model_fields]
    for seat in seats:
        if not isinstance(seat, vf.AgentConfig) or getattr(seat.runtime, "type", "") != "subprocess":
            continue
        harness = type(seat.harness).__module__
        if harness.startswith(_HARNESSES) and shutil.which("uv", path=_path()) is None:
            raise MissingLibraryError(
                f"the harness {seat.harness.id!r} is a program that uv runs, and uv is not there: install it with pip "
                f"install uv, or give the seat another `runtime` in task.options.env"
            )


@lru_cache(maxsize=4)
def _environment(settings: str) -> Any:
    return vf.load_environment(vf.resolve_env_config(json.loads(settings)))


def _earned(episode: Any) -> dict[str, float]:
    """Rewards and metrics of the seats that are trained, each the mean over them."""
    if not episode.ok:
        errors = [*episode.errors, *(error for trace in episode.traces for error in trace.errors)]
        said = "; ".join(f"{error.type}: {error.message}" for error in errors) or "no reason given"
        raise RuntimeError(f"verifiers: {said[:_SHOWN]}")
    traces = [trace for trace in episode.traces if trace.agent is None or trace.agent.trainable] or episode.traces
    values: dict[str, list[float]] = {}
    for trace in traces:
        named = {name: reward.score for name, reward in trace.rewards.items() if reward is not None}
        named |= {name: value for name, value in trace.metrics.items() if value is not None and name not in named}
        for name, value in named.items():
            values.setdefault(name, []).append(float(value))
    values.pop("score", None)
    parts = {name: sum(found) / len(found) for name, found in list(values.items())[:_MAX_PARTS]}
    return {**parts, "score": sum(trace.reward for trace in traces) / len(traces)}
