"""docs/extend of the learner's doors: every example is complete, short, and runs against an installed Weir."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from tests.conftest import REPOSITORY
from tests.support.extend_pages import MAX_LINES, PAGES, files_of
from tests.support.installed import installed

EXAMPLES = ("model_family", "objective", "advantage", "logger")
#: Loads the page's configuration, and says where Weir is.
LOAD = """
import json, sys
import learner_jax
from configs.load import load_config
config = load_config("config.toml")
found = {"weir": learner_jax.__file__}
"""
MODEL_FAMILY = """
from pathlib import Path
import numpy as np, jax.numpy as jnp
from safetensors.numpy import load_file, save_file
from learner_jax.contracts import hf_shapes, read_model_config
from learner_jax.models import load_parameters, merge, token_logprobs
from tools.testing.fake_vllm.qwen3 import Qwen3, log_softmax

shape = {"vocab_size": 23, "hidden_size": 16, "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 4}
Path("model").mkdir()
names = {"architectures": ["TinyForCausalLM"], "model_type": "tiny"}
Path("model/config.json").write_text(json.dumps(shape | names))
model = read_model_config(config.model.path, family=config.model.family)
rng = np.random.default_rng(0)
tensors = {name: rng.normal("norm" in name, 0.4, dims).astype(np.float32) for name, dims in hf_shapes(model).items()}
save_file(tensors, "model/model.safetensors")
tokens = rng.integers(0, 23, (2, 9)).astype(np.int32)
ours = token_logprobs(merge(model, load_parameters("model", model)), jnp.asarray(tokens)).logprobs[:, 1:]
scores = log_softmax(Qwen3(model, tensors).logits(tokens)[:, :-1])
expected = np.take_along_axis(scores, tokens[:, 1:, None], axis=-1)[..., 0]
found["norms"] = sum("_norm.weight" in name for name in tensors)
found["difference"] = float(np.abs(np.asarray(ours) - expected).max())
"""
OBJECTIVE = """
import numpy as np, jax.numpy as jnp
from learner_jax.training.policy_term import policy_objective
objective = policy_objective(config.learner.loss.policy)
ratios = jnp.asarray([[0.5, 1.0, 2.0, 0.5, 2.0]])
advantages = jnp.asarray([[1.0, 1.0, 1.0, -1.0, -1.0]])
loss, _ = objective({"log_ratios": jnp.log(ratios), "advantages": advantages})
found["loss"] = np.round(np.asarray(loss[0], np.float64), 5).tolist()
found["token_local"] = objective.token_local
"""
ADVANTAGE = """
import numpy as np
from learner_jax.batches.estimators import estimator_of
found["advantages"] = estimator_of(config.learner.loss.advantage)(np.array([0.0, 0.0, 3.0, 1.0])).tolist()
"""
LOGGER = """
from pathlib import Path
from tools.assembly.metrics import metrics_log
from tools.assembly import RunPaths
here = Path.cwd()
log = metrics_log(config, RunPaths(here, database="", blobs=here, weights=str(here)), "learner")
log.write("phase", name="training")
for step in (1, 2):
    log.write("step", step=step, loss=step / 4, reward=0.5, kl=float("nan"))
"""


@pytest.fixture(scope="module")
def weir() -> Path:
    """A folder with an installed Weir: its wheel, unpacked, and no checkout."""
    return installed()


def write(page: str, folder: Path) -> None:
    """The files of a page; its TOML file changes the demo's configuration."""
    for name, text in files_of(page).items():
        (folder / name).write_text(text)
    whole = tomllib.loads((REPOSITORY / "configs/demo.toml").read_text())
    given = tomllib.loads((folder / "config.toml").read_text())
    if "model" in given:
        whole["model"] = given.pop("model")
    _update(whole, given)
    (folder / "config.toml").write_text(tomli_w.dumps(whole))


def _update(table: dict[str, Any], given: dict[str, Any]) -> None:
    for name, value in given.items():
        if isinstance(value, dict):
            _update(table.setdefault(name, {}), value)
        else:
            table[name] = value


def run(weir: Path, folder: Path, program: str) -> dict[str, Any]:
    """What a program finds out in a folder with a page's files; the program's own end is awaited."""
    of_jax = {name: value for name, value in os.environ.items() if name.startswith(("JAX_", "XLA_"))}
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(weir), **of_jax}
    command = [sys.executable, "-P", "-c", f"{LOAD}{program}print(json.dumps(found))"]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    assert found.pop("weir").startswith(str(weir)), "the checkout must not be what runs"
    return found


def test_the_model_family_of_the_page_equals_an_independent_model(weir: Path, tmp_path: Path) -> None:
    write("model_family", tmp_path)
    found = run(weir, tmp_path, MODEL_FAMILY)
    assert found["norms"] == 4
    assert found["difference"] < 1e-4


def test_the_objective_of_the_page_clips_on_one_side(weir: Path, tmp_path: Path) -> None:
    write("objective", tmp_path)
    found = run(weir, tmp_path, OBJECTIVE)
    assert found == {"loss": [-0.5, -1.0, -1.3, 0.5, 2.0], "token_local": True}


def test_the_estimator_of_the_page_takes_the_median_away(weir: Path, tmp_path: Path) -> None:
    write("advantage", tmp_path)
    assert run(weir, tmp_path, ADVANTAGE) == {"advantages": [-0.5, -0.5, 2.5, 0.5]}


def test_the_logger_of_the_page_gets_the_steps(weir: Path, tmp_path: Path) -> None:
    write("logger", tmp_path)
    run(weir, tmp_path, LOGGER)
    assert (tmp_path / "learner.csv").read_text().splitlines() == ["1,0.25,0.5", "2,0.5,0.5"]


@pytest.mark.parametrize("page", EXAMPLES)
def test_an_example_is_short(page: str) -> None:
    text = (PAGES / f"{page}.md").read_text()
    blocks = re.findall(r"^```python[^\n]*\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert blocks
    for block in blocks:
        ast.parse(block)
        assert len([line for line in block.splitlines() if line.strip()]) <= MAX_LINES
