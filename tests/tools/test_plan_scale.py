"""The scale plan: against published figures, by what must hold of any plan, and the command that prints it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from learner_jax.contracts import ModelConfigError, parse_model_config
from tools import plan as command
from tools.planning import MODELS, Plan, ScaleInputs, against_published, plan_scale, read_inputs, sizes_of

PAGE = Path(__file__).parents[2] / "docs" / "studies" / "scale.md"
SIZES = (8, 64, 512)


def planned(name: str, gpus: int, **changes: dict[str, Any]) -> Plan:
    inputs = ScaleInputs.model_validate(changes)
    return plan_scale(name, parse_model_config(MODELS[name], origin=name), gpus, inputs)


def share(plan: Plan, name: str) -> float:
    return next(load.share for load in plan.loads if load.name == name)


def test_sizes_are_those_of_the_models() -> None:
    sizes = {name: sizes_of(parse_model_config(fields, origin=name)) for name, fields in MODELS.items()}
    assert sizes["Llama-3.1-8B"].parameters == 8_030_261_248  # as its model card's safetensors say
    assert sizes["Llama-3.1-70B"].parameters == 70_553_706_496
    assert sizes["Llama-3.1-8B"].active == sizes["Llama-3.1-8B"].parameters - 128_256 * 4096
    assert sizes["Llama-3.1-70B"].kv_bytes == 327_680
    assert sizes["Qwen3-1.7B"].active == sizes["Qwen3-1.7B"].parameters  # the embedding is the head


def test_engines_are_predicted_within_15_percent_of_published_figures() -> None:
    ratios = [item.ratio for item in against_published(ScaleInputs()) if item.unit == "tokens/s"]
    assert len(ratios) == 10
    assert max(abs(ratio - 1) for ratio in ratios) < 0.15


def test_loops_are_predicted_faster_than_published_ones_that_wait_for_a_batch() -> None:
    ratios = [item.ratio for item in against_published(ScaleInputs()) if item.unit == "s a step"]
    assert len(ratios) == 2
    assert all(0.4 < ratio < 1 for ratio in ratios)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("gpus", SIZES)
def test_gpu_time_is_divided_and_not_exceeded(name: str, gpus: int) -> None:
    plan = planned(name, gpus)
    if not plan.fits:
        assert (name, gpus) == ("Llama-3.1-70B", 8)
        assert math.isinf(plan.step_s)
        return
    assert plan.learner_gpus + plan.replicas * plan.replica_gpus <= gpus
    parts = ("sampling", "training", "prompts", "too few answers in flight", "KV caches computed again", "pauses")
    shares = [share(plan, part) for part in (*parts, "reference log-probs", "gathering weights")]
    assert all(part >= 0 for part in shares)
    assert 0.8 < sum(shares) <= 1  # the rest is the side that waits, and GPUs that no replica can use
    assert [load.share for load in plan.loads] == sorted((load.share for load in plan.loads), reverse=True)


def test_a_load_is_its_seconds_over_those_of_a_step() -> None:
    plan = planned("Llama-3.1-8B", 64, rates={"encode": 1e9, "rollout_workers": 2}, workload={"verdict_s": 0.5})
    assert share(plan, "publishing: compare, encode, hash") == pytest.approx(2 * 8.030261248 / plan.step_s)
    assert share(plan, "scoring") == pytest.approx(8192 * 0.5 / (2 * 2) / plan.step_s)
    assert plan.limits[0].name == "scoring"
    assert plan.paced_step_s == pytest.approx(8192 * 0.5 / (2 * 2))


def test_what_only_makes_answers_old_does_not_set_the_pace() -> None:
    plan = planned("Llama-3.1-8B", 512, rates={"rollout_workers": 100})
    assert plan.limits[0].name == "longest answer against max_staleness"
    assert plan.limits[0].share == pytest.approx(16_384 / plan.in_time)
    assert plan.limits[0].share > 1
    assert plan.paced_step_s == plan.step_s


def test_answers_in_flight_obey_littles_law() -> None:
    """Where the gate bounds them, an answer of mean length takes as long as decoding `max_staleness` steps."""
    plan = planned("Qwen3-1.7B", 512)
    assert plan.per_replica * plan.replicas == pytest.approx(2 * 8192)
    decoding_s = (share(plan, "sampling") + share(plan, "too few answers in flight")) * 512 * plan.step_s
    decoding_s /= plan.replicas * plan.replica_gpus
    assert 2000 * plan.token_s == pytest.approx(2 * decoding_s)
    assert plan.in_time == pytest.approx(2000 * plan.step_s / decoding_s)


def test_more_gpus_are_not_slower_and_no_other_split_is_faster() -> None:
    steps = [planned("Llama-3.1-8B", gpus).step_s for gpus in (8, 16, 32, 64, 128, 256, 512)]
    assert steps == sorted(steps, reverse=True)
    best = planned("Llama-3.1-8B", 8)
    assert best.learner_gpus == 4
    # Sampling sets the pace of one side, training that of the other.
    slower = planned("Llama-3.1-8B", 8, workload={"answer_tokens": 4000})
    assert slower.step_s > best.step_s


def test_without_a_reference_its_load_is_gone() -> None:
    plan = planned("Llama-3.1-8B", 64, workload={"reference": False})
    assert share(plan, "reference log-probs") == 0
    assert plan.step_s < planned("Llama-3.1-8B", 64).step_s


def test_older_answers_allowed_fill_the_replicas() -> None:
    narrow, wide = planned("Llama-3.1-8B", 512), planned("Llama-3.1-8B", 512, workload={"max_staleness": 8})
    assert share(narrow, "too few answers in flight") > 0.2
    assert share(wide, "too few answers in flight") < 0.05
    assert wide.step_s < 0.95 * narrow.step_s


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[workload]\ngruops = 1", "workload.gruops"),
        ("[engine]\nflops_share = 2.0", "engine.flops_share"),
        ("not toml", "is no TOML file"),
    ],
)
def test_inputs_that_are_not_understood_are_named(text: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "inputs.toml"
    file.write_text(text)
    with pytest.raises(ModelConfigError, match=said):
        read_inputs(file)
    with pytest.raises(ModelConfigError, match="No such file"):
        read_inputs(tmp_path / "none.toml")


def test_the_command_takes_a_readers_own_model_and_inputs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    shapes, inputs, out = tmp_path / "shapes.json", tmp_path / "inputs.toml", tmp_path / "out.json"
    shapes.write_text(json.dumps({"models": {"mine": MODELS["Qwen3-1.7B"]}}))
    inputs.write_text("[workload]\ngroups = 64\n")
    options = ["--shapes", str(shapes), "--model", "mine", "--gpus", "16", "--show-inputs"]
    command.main(["scale", *options, "--inputs", str(inputs), "--json", str(out)])
    shown = capsys.readouterr().out
    assert "mine: loads" in shown
    assert "workload.max_staleness" in shown
    written = json.loads(out.read_text())
    assert written["inputs"]["workload"]["groups"] == 64
    (plan,) = written["plans"]
    assert (plan["name"], plan["num_gpus"]) == ("mine", 16)


def test_the_page_shows_what_the_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    command.main(["scale", "--markdown", "--show-inputs"])
    tables = capsys.readouterr().out.strip().split("\n\n**")
    page = PAGE.read_text()
    assert len(tables) == 6
    for table in tables:
        assert table.strip().removeprefix("**") in page
