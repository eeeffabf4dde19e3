"""Utilisation of a GPU: operations of real tokens over time, against the GPU's own peak."""

from __future__ import annotations

import math

import pytest

from learner_jax.batches.packing import pack_rows
from learner_jax.batches.rows import Lengths
from learner_jax.models.flops import train_step_flops
from tests.support.bench_batches import TINY
from tools.bench.__main__ import main
from tools.bench.learner import command, gpu


def test_flops_of_a_step_count_real_tokens() -> None:
    lengths = [5, 3, 9]
    plan = pack_rows(Lengths.of(lengths), width=9, row_lengths=(16,)).plan()
    layer_parameters = 2 * (16 * 16 + 2 * 8 * 16 + 16 * 16 + 3 * 16 * 24)
    # A token sees itself too: n (n + 1) / 2 pairs, n^2 / 2 up to a share of 1 / n.
    pairs = sum(n * (n + 1) / 2 for n in lengths)
    want = 6 * layer_parameters * 17 + 6 * 37 * 16 * 7 + 12 * 2 * (2 * 8) * pairs
    assert train_step_flops(TINY.config(), plan.layout, num_scored=7) == pytest.approx(want)


def test_utilisation_is_the_share_of_the_peak() -> None:
    assert gpu.utilisation(model_flops=6e14, step_s=2.0, peak_flops=6e14) == 0.5


def test_models_have_the_sizes_of_their_names() -> None:
    for name, billions in (("Qwen3-1.7B", 1.72), ("Qwen3-4B", 4.02), ("Qwen3-8B", 8.19)):
        config = command.MODELS[name].config()
        sizes = [
            math.prod(row.shape) * (config.num_layers if row.stacked else 1) for row in gpu.flops.parameters(config)
        ]
        assert sum(sizes) / 1e9 == pytest.approx(billions, abs=0.01)


def test_gpu_lengths_nearly_fill_the_rows() -> None:
    lengths, prompts = gpu.lengths_of(rows=64, seed=0)
    assert len(lengths) % 8 == 0
    assert 0.7 < lengths.sum() / (64 * 8192) <= 1.0
    assert (prompts < lengths).all()


def test_without_a_gpu_the_gpu_case_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["learner", "--device", "gpu", "--model", "Qwen3-4B"]) == 1
    assert "error: --device gpu needs an NVIDIA GPU that JAX sees, got platform cpu" in capsys.readouterr().err
