"""A user's agent trains a model from an installed Weir, outside the repository: the whole job on real vLLM."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from serving_bridge.queue.queue import TrajectoryQueue
from tests.support.installed import installed
from tests.support.random_chat import write_model
from tests.support.session_world import tokenizer as tokenizer
from tests.support.whole_jobs import heldout_samples, trained_outside

pytest.importorskip("vllm", reason="vLLM is not installed")
pytest.importorskip("openai", reason="OpenAI's client is not installed")
pytestmark = [pytest.mark.soak, pytest.mark.timeout(1000)]

AGENT = """
from openai import AsyncOpenAI

TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}]

async def solve(base_url, row):
    async with AsyncOpenAI(base_url=base_url, api_key="none") as client:
        messages, said = [{"role": "user", "content": row["question"]}], 0
        for _ in range(3):
            told = await client.chat.completions.create(model="policy", messages=messages, tools=TOOLS)
            answer = told.choices[0].message
            said += len(answer.content or "")
            messages += [answer.model_dump(exclude_none=True), {"role": "user", "content": "Go on."}]
        return {"score": said % 7 / 7, "characters": float(said)}
"""


def test_an_agent_trains_from_an_installed_weir(tokenizer: Any, tmp_path: Path) -> None:
    weir, folder = installed(), tmp_path / "folder"
    folder.mkdir()
    write_model(folder / "model", tokenizer)
    (folder / "my_agent.py").write_text(AGENT)
    rows = ({"question": f"What is {i} + 22?", "answer": i + 22} for i in range(80))
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {
        "run": {"name": "agents", "directory": str(folder / "run")},
        "model": {"path": str(folder / "model")},
        "task": {
            "provider": "rows", "data": "prompts.jsonl", "environment": "agent", "chat": True,
            "turns": 3, "episode": {"agent": "my_agent:solve", "agent_processes": 4, "wall_s": 120.0},
        },
        "learner": {"steps": 3, "groups_per_step": 2, "sequence_length": 400, "microbatch_rows": 4},
        "rollout": {
            "group_size": 2, "max_staleness": 1, "max_prompt_tokens": 100, "max_tokens": 16, "concurrent_groups": 2,
            "max_episode_tokens": 400,
        },
        "serving": {"dtype": "float32", "max_model_len": 448},
        "evaluation": {"num_problems": 2, "every": 1},
    }  # fmt: skip
    trained = trained_outside(folder, config, str(weir))
    assert all(record["reward_parts"]["characters"] > 0 for record in trained)
    assert all(sample["answer"].count("Go on.") == 2 for sample in heldout_samples(folder / "run"))
    assert TrajectoryQueue(folder / "run" / "state.db").admin.progress().num_acknowledged == 6
