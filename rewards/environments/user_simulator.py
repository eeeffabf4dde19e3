"""A dialog with a user whom a model plays: what it says is untrusted text, bounded and repeatable by seed."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import aiohttp

from learner_jax.runtime import WeirError, printable
from rewards.contracts import (
    EpisodeState,
    Message,
    Outcome,
    Problem,
    Reply,
    RewardRequest,
    Task,
    TaskError,
    ToolDefinition,
)
from rewards.settings import FLEET, EpisodeSettings, TaskSettings
from rewards.tools import clean

#: the user has nothing more to say
DONE = "[DONE]"
_MAX_BODY = 4 * 2**20
_CHARACTERS_PER_TOKEN = 16
_THREADS = 16
_FIRST_PAUSE_S, _MAX_PAUSE_S = 0.5, 8.0
#: (messages in OpenAI's form, most tokens, seed) -> what the user says
Ask = Callable[[Sequence[Mapping[str, str]], int, int], Awaitable[str]]


class UserError(WeirError, RuntimeError):
    """The user's model gave no message; says why."""


@dataclass
class _Memory:
    """What one episode has said so far; it belongs to that episode alone.

    Attributes:
      began_s: on the environment's clock.
      dialog: (role, text), in order.
      score: of the latest answer.
    """

    began_s: float
    dialog: list[tuple[str, str]]
    score: float = 0.0


class UserSimulator:
    """Plays a task with a simulated user; implements `rewards.contracts.AsyncEnvironment`.

    Every answer is judged by the task, and earns what it adds to the score of the answer before. The dialog ends with
    an answer that passes, with the last turn, or when the user has nothing more to say.

    Args:
      ask: what plays the user, in place of what the settings name.
    """

    tools: Sequence[ToolDefinition] = ()

    def __init__(
        self,
        task: Task,
        settings: TaskSettings,
        *,
        ask: Ask | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._task, self._settings, self._clock = task, settings, clock
        episode = settings.episode
        self._ask = ask or (None if episode.user_url == FLEET else _Endpoint(episode).ask)
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="weir-user")
        player = hashlib.sha256(f"{episode.user_url}\n{episode.user_model}\n{episode.user_prompt}".encode()).hexdigest()
        self.version = f"{task.version}+user:{player[:8]}:{settings.turns}"
        self.max_turns = settings.turns

    def bind_fleet(self, ask: Ask) -> None:
        """Gives it the policy's own replicas; they play the user where the settings say so."""
        if self._ask is None:
            self._ask = ask

    async def reset(self, problem: Problem) -> EpisodeState:
        return EpisodeState(problem, memory=_Memory(self._clock(), [("user", problem.question)]))

    async def step(self, state: EpisodeState, reply: Reply) -> Outcome:
        memory, limit_s = state.memory, self._settings.episode.wall_s
        if self._clock() - memory.began_s > limit_s:
            raise TimeoutError(f"the episode took longer than {limit_s:g} s (task.episode.wall_s)")
        request = RewardRequest(state.problem, reply.text, reply.finish_reason)
        result = await asyncio.get_running_loop().run_in_executor(self._threads, self._task.score, request)
        after = replace(state, turn=state.turn + 1)
        if result.score is None:
            return Outcome(None, {}, result.verdict, None, after, result.reasons)
        gained = result.score - memory.score
        memory.dialog.append(("assistant", reply.text))
        memory.score = result.score
        is_over = (
            reply.is_last or reply.finish_reason != "stop" or after.turn >= self.max_turns or result.verdict == "pass"
        )
        parts = {**result.parts, "turns": float(after.turn)}
        return Outcome(gained, parts, result.verdict, None if is_over else (), after, result.reasons)

    async def observe(self, state: EpisodeState) -> tuple[Message, ...]:
        """The user's next message; none ends the episode."""
        episode = self._settings.episode
        if self._ask is None:
            raise UserError('nobody plays the user: task.episode.user_url is "fleet", and there is no fleet here')
        instruction = episode.user_prompt.replace("{question}", state.problem.question)
        swapped = {"user": "assistant", "assistant": "user"}
        dialog = [{"role": swapped[role], "content": text} for role, text in state.memory.dialog]
        messages = [{"role": "system", "content": instruction}, {"role": "user", "content": "Begin."}, *dialog]
        async with asyncio.timeout(episode.user_timeout_s):
            said = await self._ask(messages, episode.user_tokens, seed_of(state))
        text = clean(said)[: episode.user_tokens * _CHARACTERS_PER_TOKEN].strip()
        if DONE in text or not text:
            return ()
        state.memory.dialog.append(("user", text))
        return (Message("user", text),)

    async def close(self, state: EpisodeState) -> None:
        """Nothing is held between turns."""

    def end(self) -> None:
        """Ends its threads, once they have judged what they began."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def user_simulator(task: Task, settings: TaskSettings) -> UserSimulator:
    """The environment with the user that the settings name."""
    return UserSimulator(task, settings)


def seed_of(state: EpisodeState) -> int:
    """The same for every episode of a problem at the same turn, so that answers of a group meet the same user."""
    key = json.dumps([state.problem.index, state.problem.question, state.turn]).encode()
    return int.from_bytes(hashlib.sha256(key).digest()[:4], "big") >> 1


class _Endpoint:
    """A model behind an OpenAI-compatible address.

    Raises:
      TaskError: the address or the key can't be used.
    """

    def __init__(self, settings: EpisodeSettings) -> None:
        self._settings = settings
        url = settings.user_url.rstrip("/")
        if not url.startswith(("http://", "https://")):
            raise TaskError(f"task.episode.user_url is {url!r:.200}, expected http://..., https://... or {FLEET!r}")
        self._url = f"{url}/chat/completions"
        self._headers: dict[str, str] = {}
        if name := settings.user_key_env:
            if not (key := os.environ.get(name, "").strip()):
                raise TaskError(f"task.episode.user_key_env: the environment variable {name} is not set, or empty")
            self._headers = {"Authorization": f"Bearer {key}"}

    async def ask(self, messages: Sequence[Mapping[str, str]], max_tokens: int, seed: int) -> str:
        """What the model says; tried again where that may help, until the caller's time is over.

        Raises:
          UserError: the server refused, or sent what can't be read.
        """
        body = {
            "model": self._settings.user_model,
            "messages": list(messages),
            "max_tokens": max_tokens,
            "temperature": self._settings.user_temperature,
            "seed": seed,
        }
        pause_s = _FIRST_PAUSE_S
        async with aiohttp.ClientSession(trust_env=False) as session:
            while True:
                try:
                    status, payload = await self._post(session, body)
                except (aiohttp.ClientError, OSError):
                    status, payload = 0, b""
                if status == 200:
                    return _said(payload)
                if status and status != 429 and status < 500:
                    raise UserError(
                        f"{self._url} answered {status}: {printable(payload[:200].decode(errors='replace'))}"
                    )
                await asyncio.sleep(pause_s)
                pause_s = min(_MAX_PAUSE_S, 2 * pause_s)

    async def _post(self, session: aiohttp.ClientSession, body: Mapping[str, Any]) -> tuple[int, bytes]:
        async with session.post(self._url, json=body, headers=self._headers, allow_redirects=False) as answer:
            payload = bytearray()
            async for chunk in answer.content.iter_chunked(2**16):
                payload += chunk
                if len(payload) > _MAX_BODY:
                    raise UserError(f"{self._url} sent more than {_MAX_BODY} bytes")
            return answer.status, bytes(payload)


def _said(payload: bytes) -> str:
    try:
        text = json.loads(payload)["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise UserError(f"the user's model sent what can't be read: {type(error).__name__}") from None
    if not isinstance(text, str):
        raise UserError(f"the user's model said {text!r:.80}, expected text")
    return text
