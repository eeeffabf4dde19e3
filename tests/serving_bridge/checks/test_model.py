"""What vLLM can't compute, and what a dialog can't say, is told before a server starts."""

from __future__ import annotations

import re
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest

from learner_jax.contracts import read_model_config
from serving_bridge.checks.model import CPU_HEAD_SIZES, serving_findings
from serving_bridge.checks.prompts import dialog_findings
from serving_bridge.evaluation import PromptEncoder
from serving_bridge.settings import ServingSettings
from serving_bridge.text import load_tokenizer
from tests.support.new_models import created as created


def test_head_sizes_are_those_of_the_installed_vllm() -> None:
    spec = find_spec("vllm")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("vLLM is not installed")
    text = Path(spec.submodule_search_locations[0], "v1/attention/backends/cpu_attn.py").read_text()
    (listed,) = re.findall(r"def get_supported_head_sizes.*?return \[(.*?)\]", text, re.DOTALL)
    assert tuple(map(int, listed.split(","))) == CPU_HEAD_SIZES


@pytest.mark.parametrize(("platform", "head_dim", "told"), [("cpu", 16, 1), ("cpu", 32, 0), ("cuda", 16, 0)])
def test_a_head_size_without_a_kernel_is_told(created: Path, platform: str, head_dim: int, told: int) -> None:
    model = replace(read_model_config(created), head_dim=head_dim)
    found = list(serving_findings(model, ServingSettings(max_model_len=64), platform=platform))
    assert [finding.got for finding in found] == [f"head_dim {head_dim}"] * told


def test_feedback_is_measured_only_where_it_is_said(created: Path) -> None:
    encoder = PromptEncoder(load_tokenizer(created), template="{question}", chat=False, max_prompt_tokens=4)
    long = "Calculate 1 + 1. Calculate 2 + 2."
    assert [finding.setting for finding in dialog_findings(encoder, feedback=long, turns=2)] == ["task.feedback"]
    assert not list(dialog_findings(encoder, feedback=long, turns=1))
    assert not list(dialog_findings(encoder, feedback=None, turns=2))
