"""A short real run of Weir's side: the job starts, is measured process by process, and ends with all it started."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest

from tests.support.new_models import SMALL, arithmetic_texts
from tools.assembly import create_model
from tools.bench.__main__ import main


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_weirs_side_is_measured_by_process(tmp_path: Path) -> None:
    if find_spec("vllm") is None:
        pytest.skip("vLLM is not installed")
    create_model(tmp_path / "model", SMALL.model_copy(update={"head_dim": 32}), arithmetic_texts(), seed=5)
    before = {process.pid for process in psutil.Process().children(recursive=True)}
    path = tmp_path / "figures.json"
    given = ["--model", str(tmp_path / "model"), "--sides", "weir", "--rounds", "1", "--steps", "8", "--skip", "3"]
    assert main(["end_to_end", *given, "--evaluate-every", "4", "--json", str(path)]) == 0
    (run,) = json.loads(path.read_text())["results"]["runs"]["weir"]
    assert run["steps"] == 5
    busy = {"learner", "rollout worker", "fleet", "vLLM server", "vLLM engine"}
    assert busy <= run["step_cpu"].keys()
    assert busy <= run["memory"].keys()
    assert all(run["step_cpu"][role] > 0 for role in busy)
    assert run["step_cpu"].keys() <= busy | {"vLLM worker", "supervisor", "conversion", "database"}
    assert run["tokens_per_s"] == pytest.approx(5 * 512 * 4 / sum(run["step_walls"]), rel=0.5)
    assert run["skills"][0][0] == 0
    assert {process.pid for process in psutil.Process().children(recursive=True)} <= before
