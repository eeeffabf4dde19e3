"""Tasksets, harnesses and environments of `verifiers` 0.4, played unmodified.

The library runs in an agent's process: its harness speaks to the session of one episode, its own interception server in
between. Every taskset that it can load by id works, with every harness that runs beside it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

from rewards.others.needed import needed

vf: Any = needed("verifiers.v1", extra="verifiers")
_NO_KEY = "WEIR_NEEDS_NO_KEY"
_MODEL = "policy"
_MAX_PARTS = 60
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
    """
    settings = _settings(taskset, harness, turns, env or {})
    for task in _environment(json.dumps(settings, sort_keys=True)).taskset:
        data = task.data.model_dump(mode="json", exclude_none=True)
        yield {"question": task.data.prompt_text or str(task.data.name or task.data.idx), "task": data, "env": settings}


async def play(base_url: str, row: Mapping[str, Any]) -> dict[str, float]:
    """Plays one episode of a row, for `task.episode.agent`; its rewards by name, and their sum as "score".

    Raises:
      RuntimeError: verifiers says that the episode failed.
    """
    environment = _environment(json.dumps(row["env"], sort_keys=True))
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
