"""A job whose parts come from a package of a user's, together: data, reward, environment, losses, family, logger.

The package lies outside the repository, and runs against an installed Weir. Half of its parts are entry points, the
others are named as "package.module:name".
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rewards.sandbox import confinement
from serving_bridge.telemetry import read_metrics
from tests.support.installed import installed
from tests.support.whole_jobs import heldout_samples

pytestmark = pytest.mark.skipif(confinement.missing() != "", reason=f"this machine: {confinement.missing()}")

STEPS = 3
FILES = {
    "own_parts-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: own-parts\nVersion: 1.0\n",
    "own_parts-1.0.dist-info/entry_points.txt": """\
[weir.model_family]
mistral = own_parts.family:MISTRAL
[weir.data]
numbers = own_parts.data:numbers
[weir.reward]
digits = own_parts.reward:digits
[weir.objective]
clip_above = own_parts.losses:clip_above
""",
    "own_parts/__init__.py": "",
    "own_parts/family.py": """\
from dataclasses import replace
from learner_jax.contracts import LLAMA

MISTRAL = replace(LLAMA, name="mistral", architecture="MistralForCausalLM", model_type="mistral")
""",
    "own_parts/data.py": """\
def numbers(size):
    for number in range(size):
        yield {"question": f"Guess {number}.", "answer": number}
""",
    "own_parts/reward.py": """\
def digits(prompt, answer, row):
    return sum(character.isdigit() for character in answer) / max(len(answer), 1)
""",
    "own_parts/dialog.py": """\
class Twice:
    def reset(self, row):
        return {"tries": 0}

    def step(self, state, answer):
        tries = state["tries"] + 1
        share = sum(character.isdigit() for character in answer) / max(len(answer), 1)
        return {"score": share, "digits": share}, "Again." if tries == 1 else None, {"tries": tries}
""",
    "own_parts/losses.py": """\
import jax.numpy as jnp
import numpy as np
from learner_jax.losses import importance_ratios, token_local

@token_local
def clip_above(log_ratios, advantages, clip_high):
    ratios = importance_ratios(log_ratios)
    loss = -jnp.minimum(ratios * advantages, jnp.minimum(ratios, 1 + clip_high) * advantages)
    return loss, {"own_ratio": ratios}

def median_baseline(rewards):
    with open("estimated.txt", "a") as told:
        print(len(rewards), file=told)
    return rewards - np.median(rewards)
""",
    "own_parts/log.py": """\
class Lines:
    def __init__(self, directory, process):
        self.file = open(directory / f"{process}.lines", "a")

    def write(self, event):
        if event["event"] == "step":
            print(event["step"], file=self.file)

    def close(self):
        self.file.close()
""",
    "config.toml": """\
run = { name = "own", loggers = ["own_parts.log:Lines"] }
model = { path = "model", family = "mistral" }

[task]
provider = "rows"
data = "numbers"
options = { size = 200 }
reward = "digits"
environment = "own_parts.dialog:Twice"
turns = 2

[learner]
steps = STEPS
groups_per_step = 4
sequence_length = 64
row_tokens = [128]
microbatch_rows = 8
cpu_cores = 1
loss.policy = { objective = "clip_above", clip_high = 0.3 }
loss.advantage = { estimator = "own_parts.losses:median_baseline" }

[rollout]
group_size = 4
max_prompt_tokens = 24
max_tokens = 8

[serving]
dtype = "float32"
max_model_len = 64
start_timeout_s = 900.0

[evaluation]
num_problems = 8
every = 1
temperature = 1.0
""".replace("STEPS", str(STEPS)),
}
#: Makes the model's folder: a created one, without the norms that the family doesn't have.
MAKE_MODEL = """
import json
from pathlib import Path
from configs.schema import CreateModelSettings
from safetensors.numpy import load_file, save_file
from tools.assembly import create_model

folder = Path("model")
texts = [f"Guess {number}. Again. {number}" for number in range(200)]
create_model(folder, CreateModelSettings(num_layers=2, hidden_size=64), texts, seed=0)
config = json.loads((folder / "config.json").read_text())
names = {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": None}
(folder / "config.json").write_text(json.dumps(config | names))
tensors = load_file(folder / "model.safetensors")
kept = {name: tensor for name, tensor in tensors.items() if not name.endswith(("q_norm.weight", "k_norm.weight"))}
save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
"""


class Job:
    """A user's folder beside an installed Weir."""

    def __init__(self, folder: Path, site: Path):
        self.folder, self._site = folder, site
        for name, text in FILES.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)
        self.python("-c", MAKE_MODEL)

    def python(self, *arguments: str, timeout_s: float = 120) -> str:
        """What a program prints; it must end well."""
        paths = os.pathsep.join(map(str, (self._site, self.folder)))
        environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
        done = subprocess.run(
            [sys.executable, "-P", *arguments],
            cwd=self.folder,
            env=environment | {"PYTHONPATH": paths},
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture
def job(tmp_path: Path) -> Job:
    folder = tmp_path / "own"
    folder.mkdir()
    return Job(folder, installed())


def test_parts_of_a_users_pass_the_checks_together(job: Job) -> None:
    told = job.python("-m", "tools.train", "--config", "config.toml", "--dry-run")
    assert "own code                          ok" in told
    assert "ERROR" not in told


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_a_job_trains_with_parts_of_a_users_together(job: Job) -> None:
    job.python("-m", "tools.train", "--config", "config.toml", timeout_s=1700)
    run = job.folder / "runs" / "own"
    steps = [event for event in read_metrics(run / "metrics.jsonl") if event["event"] == "step"]
    numbers = list(range(1, STEPS + 1))
    assert [event["step"] for event in steps] == numbers
    assert all(event["own_ratio"] > 0 for event in steps)
    assert any(event["reward_parts"]["digits"] > 0 for event in steps)
    assert (run / "learner.lines").read_text().split() == [str(number) for number in numbers]
    assert set((job.folder / "estimated.txt").read_text().split()) <= {"1", "2", "3", "4"}
    samples = heldout_samples(run)
    assert all("Again." in sample["answer"] or sample["is_cut"] for sample in samples), "a cut answer ends the dialog"
    assert any("Again." in sample["answer"] for sample in samples)
    assert "MistralForCausalLM" in (run / "logs" / "vm-0.log").read_text()
    assert json.loads((run / "final_model" / "config.json").read_text())["architectures"] == ["MistralForCausalLM"]
