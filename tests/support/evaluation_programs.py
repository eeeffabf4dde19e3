"""Evaluation programs of others, each in an environment of its own, against a replica whose model needs no hub."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp

from serving_bridge.fleet import Replica
from serving_bridge.settings import ServingSettings

#: request's JSON -> answer's JSON; model and temperature are there already
Ask = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]


def evaluated(
    model: Path,
    folder: Path,
    route: str,
    answers: Callable[[Ask], Awaitable[list[str]]],
    run: Callable[[list[str], Replica], dict[str, Any]],
) -> dict[str, Any]:
    """What a program reports of a replica that serves the model.

    Args:
      route: of OpenAI's API, that the replica opens for the program.
      answers: asks the replica itself, by that route.
      run: (those answers, replica) -> the program's report; it may block.
    """

    async def measured() -> dict[str, Any]:
        async with aiohttp.ClientSession() as session:
            settings = ServingSettings(max_model_len=128)
            replica = Replica("one", model, settings, session, log_path=folder / "server.log", also_open=(route,))

            async def ask(body: dict[str, Any]) -> dict[str, Any]:
                headers = {"Authorization": f"Bearer {replica.client.token}"}
                told = {"model": "policy", "temperature": 0.0} | body
                async with session.post(f"{replica.base_url}{route}", json=told, headers=headers) as answer:
                    answer.raise_for_status()
                    found: dict[str, Any] = await answer.json()
                    return found

            await replica.start()
            try:
                await replica.client.control().name_version(0)
                return await asyncio.to_thread(run, await answers(ask), replica)
            finally:
                await replica.stop()

    return asyncio.run(measured())


def reported(command: list[str], folder: Path, token: str, **environment: str) -> dict[str, Any]:
    """The results that a program leaves in `folder / "out"`; it must not tell the token."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hub"), "OPENAI_API_KEY": token}
    done = subprocess.run(
        command,
        env=kept | offline | environment,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert token not in done.stdout + done.stderr
    (report,) = (folder / "out").rglob("results_*.json")
    found: dict[str, Any] = json.loads(report.read_text())["results"]
    return found
