"""The page of agents: its program plays against a session in an installed Weir, outside the repository."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.extend_pages import MAX_LINES, files_of, write
from tests.support.installed import installed
from tests.support.session_world import tokenizer as tokenizer

#: Plays the page's program; each answer is one of the texts given, in order.
PLAY = """
import asyncio, json, sys
import numpy as np
import rewards
from configs.load import load_config
from rewards.environments import create_environment
from serving_bridge.sessions import Session, SessionEndpoint, SessionLimits
from serving_bridge.text import load_tokenizer
from serving_bridge.vllm import Completion
from tools.assembly import build_task

config = load_config("config.toml")
task = build_task(config)
environment = create_environment(task, config.task)
tokenizer = load_tokenizer(sys.argv[1])
problem = next(p for i in range(3) if "42" == str((p := task.problem("train", i)).answer) or i == 2)

async def play(texts):
    given = iter(texts)
    async def sample(context, most):
        ids = [*tokenizer.encode_observation(next(given), chat=False, after=-1), tokenizer.eos_ids[0]]
        return Completion(np.array(ids, np.int32), np.zeros(len(ids), np.float32), np.ones(len(ids), np.int32), "stop")
    session = Session(tokenizer, sample, SessionLimits(environment.max_turns, 50, 500))
    endpoint = SessionEndpoint(max_context=500)
    await endpoint.start()
    try:
        async with endpoint.opened(session) as url:
            result = await asyncio.to_thread(environment.run, problem, url)
    finally:
        await endpoint.close()
    told = {"score": result.score, "parts": dict(result.parts)}
    return told | {"answers": len(session.answers), "rebuilt": session.rebuilt}

right = str(problem.answer)
found = [asyncio.run(play(texts)) for texts in (["It is " + right], ["41", right], ["a", "b", "c"])]
environment.close()
task.close()
print(json.dumps({"weir": rewards.__file__, "found": found}))
"""


def test_the_example_fits_on_a_page() -> None:
    assert all(len(text.splitlines()) <= MAX_LINES for text in files_of("agent").values())


def test_the_page_s_program_plays_outside_the_repository(tokenizer: Any, tmp_path: Path) -> None:
    pytest.importorskip("openai", reason="OpenAI's client is not installed")
    weir, folder = installed(), tmp_path / "folder"
    folder.mkdir()
    write("agent", folder)
    done = subprocess.run(
        [sys.executable, "-P", "-c", PLAY, tokenizer.model_dir],
        cwd=folder,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(weir)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["weir"].startswith(str(weir)), "the checkout must not be what runs"
    assert said["found"] == [
        {"score": 1.0, "parts": {"turns": 1.0}, "answers": 1, "rebuilt": 0},
        {"score": 0.75, "parts": {"turns": 2.0}, "answers": 2, "rebuilt": 0},
        {"score": 0.0, "parts": {}, "answers": 3, "rebuilt": 0},
    ]
