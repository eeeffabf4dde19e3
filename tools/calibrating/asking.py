"""Asks a gateway the held-out problems of a run, with log-probs and further samples, and judges the answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp
import msgspec

from learner_jax.runtime import WeirError, printable
from rewards.contracts import Problem, RewardRequest, Task, prompt_text
from tools.calibrating.known import KnownAnswer

_TIMEOUT_S = 600.0
_MAX_BYTES = 8 << 20


class AskError(WeirError, ValueError):
    """The gateway gave no answers to learn from."""

    can_heal = False


@dataclass(frozen=True)
class Asking:
    """What is asked, and how.

    Attributes:
      url: of the gateway, up to /v1.
      chat: whether the problems are asked as messages of a user.
      template: of the prompt, where {question} stands for the question.
      samples: further answers to each problem; 0 for none.
      temperature: as users sample; log-probs are those after it.
    """

    url: str
    model: str
    chat: bool
    template: str
    key: str = ""
    samples: int = 0
    temperature: float = 1.0
    max_tokens: int = 256
    at_a_time: int = 8


async def asked_answers(task: Task, asking: Asking, count: int) -> AsyncIterator[KnownAnswer]:
    """Answers to the first held-out problems, in order; those that nobody could judge are left out.

    Raises:
      AskError: the gateway refuses.
      TaskError: the task has fewer problems.
    """
    if count > 0:
        await asyncio.to_thread(task.problem, "heldout", count - 1)  # too few of them show before the first is asked
    headers = {"Authorization": f"Bearer {asking.key}"} if asking.key else {}
    timeout = aiohttp.ClientTimeout(total=_TIMEOUT_S)
    async with aiohttp.ClientSession(headers=headers, timeout=timeout) as session:
        for first in range(0, count, asking.at_a_time):
            numbers = range(first, min(count, first + asking.at_a_time))
            problems = [task.problem("heldout", number) for number in numbers]
            async with asyncio.timeout(3 * _TIMEOUT_S):
                found = await asyncio.gather(*(_asked(session, task, asking, problem) for problem in problems))
            for answer in found:
                if answer is not None:
                    yield answer


async def _asked(session: aiohttp.ClientSession, task: Task, asking: Asking, problem: Problem) -> KnownAnswer | None:
    first = await _posted(session, asking, {**_prompt(asking, problem), "logprobs": True if asking.chat else 0})
    choice = first["choices"][0]
    text, logprobs = _read(choice, chat=asking.chat)
    samples: list[str] = []
    if asking.samples:
        more = await _posted(session, asking, {**_prompt(asking, problem), "n": asking.samples})
        samples = [_read(other, chat=asking.chat)[0] for other in more["choices"]]
    request = RewardRequest(problem, text, choice.get("finish_reason") or "stop")
    result = await asyncio.to_thread(task.score, request)
    if result.score is None:
        return None
    return KnownAnswer(
        correct=result.verdict == "pass",
        logprobs=logprobs,
        answer=text,
        samples=samples,
        question=f"heldout {problem.index}",
    )


def _prompt(asking: Asking, problem: Problem) -> dict[str, Any]:
    if not asking.chat:
        return {"prompt": prompt_text(problem, asking.template)}
    if problem.prompt is not None and not isinstance(problem.prompt, str):
        return {"messages": list(problem.prompt)}
    return {"messages": [{"role": "user", "content": prompt_text(problem, asking.template)}]}


async def _posted(session: aiohttp.ClientSession, asking: Asking, fields: Mapping[str, Any]) -> Any:
    body = {
        "model": asking.model, "temperature": asking.temperature, "max_tokens": asking.max_tokens, **fields,
    }  # fmt: skip
    route = "/chat/completions" if asking.chat else "/completions"
    try:
        async with session.post(asking.url.rstrip("/") + route, json=body, allow_redirects=False) as response:
            content = b""
            async for block in response.content.iter_any():
                content += block
                if len(content) > _MAX_BYTES:
                    raise AskError(f"{printable(asking.url)[:200]} answered with more than {_MAX_BYTES} bytes")
        found = msgspec.json.decode(content)
    except (aiohttp.ClientError, OSError, TimeoutError, msgspec.DecodeError) as error:
        raise AskError(f"{printable(asking.url)[:200]} gave no answer: {printable(str(error))[:200]}") from None
    if response.status != 200:
        raise AskError(f"{printable(asking.url)[:200]} answered {response.status}: {printable(str(found))[:300]}")
    if "fallback" in (found.get("weir") or {}):
        raise AskError("the gateway fell back on another answer than the model's: empty the policies of [fallback]")
    return found


def _read(choice: Mapping[str, Any], *, chat: bool) -> tuple[str, list[float]]:
    """(text, log-probs) of a choice."""
    told = choice.get("logprobs") or {}
    if chat:
        entries = told.get("content") or []
        return choice["message"].get("content") or "", [min(0.0, entry["logprob"]) for entry in entries]
    return choice["text"], [min(0.0, value) for value in told.get("token_logprobs") or []]
