"""A taskset of `verifiers` with a tool trains a model from an installed Weir, outside the repository, on real vLLM."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.support.installed import installed
from tests.support.random_chat import write_model
from tests.support.session_world import tokenizer as tokenizer
from tests.support.whole_jobs import heldout_samples, trained_outside

pytest.importorskip("vllm", reason="vLLM is not installed")
pytest.importorskip("verifiers.v1", reason="needs weir[verifiers]")
pytestmark = [pytest.mark.soak, pytest.mark.timeout(1000)]

TASKSETS = Path(__file__).parents[1] / "support" / "tasksets"


def test_a_taskset_with_a_tool_trains_from_an_installed_weir(tokenizer: Any, tmp_path: Path) -> None:
    weir, folder = installed(), tmp_path / "folder"
    folder.mkdir()
    write_model(folder / "model", tokenizer)
    shutil.copy(TASKSETS / "vf_adding.py", folder / "vf_adding.py")
    harness = {"id": "vf_adding", "insists": 2}
    config = {
        "run": {"name": "tasksets", "directory": str(folder / "run")},
        "model": {"path": str(folder / "model")},
        "task": {
            "provider": "rows", "data": "rewards.others.verifiers:rows", "answer_column": "",
            "holdout_percent": 20,
            "options": {"taskset": "vf_adding", "env": {"agent": {"harness": harness}, "taskset": {"num_tasks": 60}}},
            "environment": "agent", "chat": True, "turns": 3,
            "episode": {"agent": "rewards.others.verifiers:play", "agent_processes": 2, "wall_s": 120.0},
        },
        "learner": {"steps": 3, "groups_per_step": 2, "sequence_length": 600, "microbatch_rows": 4},
        "rollout": {
            "group_size": 2, "max_staleness": 1, "max_prompt_tokens": 200, "max_tokens": 16, "concurrent_groups": 2,
            "max_episode_tokens": 600,
        },
        "serving": {"dtype": "float32", "max_model_len": 640},
        "evaluation": {"num_problems": 2, "every": 1},
    }  # fmt: skip
    trained = trained_outside(folder, config, str(weir), *_more())
    assert all(1 <= record["reward_parts"]["turns"] <= 3 for record in trained)
    for sample in heldout_samples(folder / "run"):
        assert sample["verdict"] in ("pass", "fail")
        assert "assistant" in sample["answer"], "the whole dialog, as the chat template shows it"


def _more() -> list[str]:
    """Folders that the tests' own PYTHONPATH names, but for the repository."""
    repository = str(Path(__file__).parents[2])
    return [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path and path != repository]
