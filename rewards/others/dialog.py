"""Episodes of text against text: what an environment shows is the user's message, an answer is an action."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import aiohttp

_TIMEOUT_S = 3600.0
#: codes of a session that takes no more answers: the episode ends there
_FULL = ("session_full", "context_length_exceeded")


@dataclass(frozen=True)
class Shown:
    """What an environment made of an action.

    Attributes:
      text: that it shows next.
      reward: earned by the action.
      is_over: whether the episode has ended.
    """

    text: str
    reward: float = 0.0
    is_over: bool = False


async def played(
    base_url: str, first: Shown, step: Callable[[str], Awaitable[Shown]], *, system: str = ""
) -> dict[str, float]:
    """Plays an episode to its end, or until the session takes no more answers.

    Args:
      first: what the environment shows at its beginning.
      step: takes an action.
      system: the system prompt; "" for none.

    Returns:
      The sum of the rewards as "score"; "turns", and "ended" (1 where the environment ended the episode).

    Raises:
      RuntimeError: the policy could not be asked.
    """
    messages: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
    shown, score, turns = first, first.reward, 0
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_TIMEOUT_S)) as http:
        while not shown.is_over:
            messages.append({"role": "user", "content": shown.text})
            answer = await _answer(http, base_url, messages)
            if answer is None:
                break
            messages.append(answer)
            shown = await step(answer.get("content") or "")
            score, turns = score + shown.reward, turns + 1
    return {"score": score, "turns": float(turns), "ended": float(shown.is_over)}


async def _answer(http: aiohttp.ClientSession, base_url: str, messages: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The policy's message, as it must be shown again; None where the session is full."""
    body = {"model": "policy", "messages": messages}
    async with http.post(f"{base_url}/chat/completions", json=body) as response:
        told = await response.json()
    if response.status == 200:
        message = told["choices"][0]["message"]
        return {key: value for key, value in message.items() if value is not None}
    error = told.get("error") or {}
    if error.get("code") in _FULL and len(messages) > 2:
        return None
    raise RuntimeError(f"the policy could not be asked: {error.get('message', response.status)}")
