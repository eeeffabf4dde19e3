"""Environments of `gymnasium` whose observations and actions are texts, played unmodified."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from typing import Any

from rewards.others.dialog import Shown, played
from rewards.others.needed import needed

gymnasium: Any = needed("gymnasium", extra="gymnasium")


def rows(
    env: str, episodes: int, system: str = "", kwargs: Mapping[str, Any] | None = None, first_seed: int = 0
) -> Iterator[dict[str, Any]]:
    """A row for each episode, for `task.data`; `task.options` are the arguments.

    Args:
      env: id, as `gymnasium.make` takes it; `my_module:Name-v0` imports my_module first.
      episodes: each has a seed of its own, from `first_seed` on.
      system: the system prompt.
      kwargs: further arguments of `gymnasium.make`.

    Raises:
      TypeError: its observations or actions are no texts.
    """
    text = gymnasium.spaces.Text
    made = _made(env, kwargs or {})
    spaces = {"observation": made.observation_space, "action": made.action_space}
    made.close()
    for name, space in spaces.items():
        if not isinstance(space, text):
            raise TypeError(f"{env}: its {name} space is {type(space).__name__}, expected Text")
    for seed in range(first_seed, first_seed + episodes):
        yield {
            "question": f"{env}, seed {seed}",
            "env": env,
            "kwargs": dict(kwargs or {}),
            "seed": seed,
            "system": system,
        }


async def play(base_url: str, row: Mapping[str, Any]) -> dict[str, float]:
    """Plays one episode of a row, for `task.episode.agent`; see `dialog.played`."""
    environment = _made(row["env"], row["kwargs"])
    try:
        observation, _ = await asyncio.to_thread(environment.reset, seed=row["seed"])

        async def step(action: str) -> Shown:
            seen, reward, terminated, truncated, _ = await asyncio.to_thread(environment.step, action)
            return Shown(_text(seen), float(reward), bool(terminated or truncated))

        return await played(base_url, Shown(_text(observation)), step, system=row["system"])
    finally:
        environment.close()


def _made(env: str, kwargs: Mapping[str, Any]) -> Any:
    """The checker is off: it refuses actions outside of the space, of which a policy writes many."""
    return gymnasium.make(env, disable_env_checker=True, **kwargs)


def _text(observation: Any) -> str:
    if not isinstance(observation, str):
        raise TypeError(f"the observation is {type(observation).__name__}, expected text")
    return observation
