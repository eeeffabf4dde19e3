"""Environments behind an OpenEnv server, over its own client: one field of actions and observations is text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rewards.others.dialog import Shown, played
from rewards.others.needed import needed

_client: Any = needed("openenv.core.generic_client", extra="openenv")


def rows(
    url: str,
    episodes: int,
    action: str,
    observation: str,
    system: str = "",
    reset: Mapping[str, Any] | None = None,
    seeded: bool = False,
) -> Iterator[dict[str, Any]]:
    """A row for each episode, for `task.data`; `task.options` are the arguments.

    Args:
      url: of the server.
      action: field that the policy's answer is put into.
      observation: field that is shown to the policy.
      system: the system prompt.
      reset: arguments of the environment's `reset`.
      seeded: whether `reset` is given the episode's number as `seed`, too.
    """
    for number in range(episodes):
        arguments = {**(reset or {}), **({"seed": number} if seeded else {})}
        yield {
            "question": f"{url}, episode {number}",
            "url": url,
            "action": action,
            "observation": observation,
            "reset": arguments,
            "system": system,
        }


async def play(base_url: str, row: Mapping[str, Any]) -> dict[str, float]:
    """Plays one episode of a row, for `task.episode.agent`; see `dialog.played`.

    Raises:
      KeyError: the observation has no such field.
    """
    async with _client.GenericEnvClient(base_url=row["url"]) as server:

        async def step(answer: str) -> Shown:
            return _shown(await server.step({row["action"]: answer}), row["observation"])

        first = _shown(await server.reset(**row["reset"]), row["observation"])
        return await played(base_url, first, step, system=row["system"])


def _shown(result: Any, field: str) -> Shown:
    if field not in result.observation:
        raise KeyError(f"the observation has no field {field!r}, only {', '.join(map(repr, result.observation))}"[:500])
    return Shown(str(result.observation[field]), float(result.reward or 0.0), bool(result.done))
