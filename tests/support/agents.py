"""Programs that play episodes over OpenAI's client, as users write them; called as (base_url, row).

The client is imported with the module, once for all episodes: a fork of each episode has it at once.
"""

from __future__ import annotations

import os
import time
from typing import Any

import openai
from openai.types.chat import ChatCompletion


def client(base_url: str) -> Any:
    return openai.OpenAI(base_url=base_url, api_key="none", max_retries=0)


def two_turns(base_url: str, row: Any) -> dict[str, float]:
    """Asks twice; the reward counts what was said."""
    asked = [{"role": "user", "content": row["question"]}]
    first: ChatCompletion = client(base_url).chat.completions.create(model="x", messages=asked)
    asked += [first.choices[0].message.model_dump(exclude_none=True), {"role": "user", "content": "Sure?"}]
    client(base_url).chat.completions.create(model="x", messages=asked)
    return {"asked": 2.0, "score": 0.5}


async def branches(base_url: str, row: Any) -> None:
    """Asks the same three times, goes on from the second, and leaves the judging to the task."""
    async with openai.AsyncOpenAI(base_url=base_url, api_key="none", max_retries=0) as api:
        asked = [{"role": "user", "content": row["question"]}]
        answers = [await api.chat.completions.create(model="x", messages=asked) for _ in range(3)]
        asked += [answers[1].choices[0].message.model_dump(exclude_none=True), {"role": "user", "content": "Sure?"}]
        await api.chat.completions.create(model="x", messages=asked)


def sub_agent(base_url: str, row: Any) -> float:
    """Asks; has another dialog aside; goes on from the first answer twice."""
    create = client(base_url).chat.completions.create
    asked: list[Any] = [{"role": "user", "content": row["question"]}]
    first: ChatCompletion = create(model="x", messages=asked)
    create(model="x", messages=[{"role": "user", "content": "Aside."}])
    told = [*asked, first.choices[0].message.model_dump(exclude_none=True)]
    for word in ("Sure?", "Really?"):
        create(model="x", messages=[*told, {"role": "user", "content": word}])
    return 1.0


def silent(base_url: str, row: Any) -> float:
    return 1.0


def raises(base_url: str, row: Any) -> float:
    two_turns(base_url, row)
    raise ValueError("broken\x1b[31m")


def hangs(base_url: str, row: Any) -> float:
    two_turns(base_url, row)
    time.sleep(600)
    return 1.0


def dies(base_url: str, row: Any) -> float:
    two_turns(base_url, row)
    os._exit(3)


def infinite(base_url: str, row: Any) -> float:
    two_turns(base_url, row)
    return float("inf")
