"""The work that all sides get: from one configuration, refused where a peer can't do the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from configs.schema import Config
from learner_jax.contracts import ModelConfigError
from rewards.contracts import Problem
from tests.support.new_models import created
from tools.assembly import build_encoder, build_task
from tools.bench import BenchmarkError
from tools.bench.end_to_end.workloads import WORKLOADS, peer_job, resolved, run_overrides

__all__ = ["created"]

DEMO = WORKLOADS["demo"]


def test_a_peer_gets_the_problems_prompts_and_settings_of_the_configuration(created: Path, tmp_path: Path) -> None:
    config = resolved(DEMO, run_overrides(DEMO, created, ["rollout.group_size=4", "learner.optimizer.eps=1e-7"]))
    path = peer_job(config, folder=tmp_path, steps=2, evaluate_every=5, threads=2, rows=10**6)
    job = json.loads(path.read_text())
    encoder, _ = build_encoder(config, created)
    task = build_task(config)
    for split, number in (("train", (2 + 4) * 64), ("heldout", 256)):
        assert len(job[split]["indices"]) == number
        problem = task.problem(split, job[split]["indices"][-1])
        assert job[split]["questions"][-1] == problem.question
        assert job[split]["tokens"][-1] == encoder.encode(problem)
    assert (job["groups_per_step"], job["group_size"], job["rows"]) == (64, 4, 256)
    assert (job["kl"], job["clip"], job["max_tokens"]) == (0.005, 0.2, 4)
    assert job["optimizer"]["eps"] == 1e-7
    assert job["eos_ids"] == list(encoder.tokenizer.eos_ids)


def test_prompts_that_are_too_long_are_left_out_as_weir_leaves_them_out(created: Path, tmp_path: Path) -> None:
    lengths = [len(build_encoder(config_of(created), created)[0].tokens(p)) for p in problems(created, 40)]
    limit = sorted(lengths)[len(lengths) // 2]
    assert min(lengths) < max(lengths), "the test needs prompts of several lengths"
    config = config_of(created, f"rollout.max_prompt_tokens={limit - 1}")
    job = json.loads(peer_job(config, folder=tmp_path, steps=1, evaluate_every=0, threads=1, rows=8).read_text())
    fitting = [index for index, length in enumerate(lengths) if length < limit]
    assert job["train"]["indices"][: len(fitting)] == fitting
    assert job["heldout"] is None


def config_of(model: Path, *more: str) -> Config:
    wide = ("rollout.max_prompt_tokens=40", "learner.sequence_length=44")
    return resolved(DEMO, run_overrides(DEMO, model, ["task.options.min_digits=1", *wide, *more]))


def problems(model: Path, number: int) -> list[Problem]:
    task = build_task(config_of(model))
    return [task.problem("train", index) for index in range(number)]


def test_a_task_without_a_prompt_that_fits_is_refused(created: Path, tmp_path: Path) -> None:
    config = config_of(created, "rollout.max_prompt_tokens=1")
    with pytest.raises(BenchmarkError, match=r"at most 1 tokens: raise rollout\.max_prompt_tokens"):
        peer_job(config, folder=tmp_path, steps=1, evaluate_every=1, threads=1, rows=8)


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("learner.loss.reduction=token_mean", "learner.loss.reduction is 'token_mean', expected 'sequence_mean'"),
        ("learner.loss.advantage.estimator=rloo", "learner.loss.advantage.estimator is 'rloo', expected 'grpo'"),
        ("learner.minibatches=2", "learner.minibatches is 2, expected 1"),
        ("learner.loss.policy.clip_high=0.3", "clip_low and clip_high differ"),
        ("learner.loss.kl.use=reward", "learner.loss.kl.use is 'reward', expected 'loss'"),
    ],
)
def test_what_the_peers_cannot_do_is_refused_with_the_setting(created: Path, override: str, told: str) -> None:
    with pytest.raises(BenchmarkError, match="the sides would do different work") as raised:
        resolved(DEMO, run_overrides(DEMO, created, [override]))
    assert told in str(raised.value)


def test_a_folder_without_a_model_is_refused_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(ModelConfigError):
        resolved(DEMO, run_overrides(DEMO, tmp_path, []))


@pytest.mark.parametrize("name", ["stories", "chat"])
def test_the_other_workloads_are_valid_and_have_eight_by_eight_answers(name: str, stories_model: Path) -> None:
    workload = WORKLOADS[name]
    more = ["task.chat=false"] if name == "chat" else []  # the story model has no chat template
    config = resolved(workload, run_overrides(workload, stories_model, more))
    assert config.learner.groups_per_step == config.rollout.group_size == 8
    assert config.rollout.max_tokens == 128
    assert config.run.name == name
