"""RMS norms of vLLM's models on the CPU, by its compiled kernel, against the formula in float64."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest

from tests.support.live_models import distributed as distributed

pytest.importorskip("vllm", reason="vLLM is not installed")

EPSILON = 1e-6


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The compiled kernels that were called, by name."""
    import torch

    from serving_bridge.vllm_plugin import cpu_kernels

    names: list[str] = []

    class Noted:
        def __getattr__(self, name: str) -> Any:
            names.append(name)
            return getattr(torch.ops._C, name)

    monkeypatch.setattr(cpu_kernels, "_kernels", Noted)
    return names


def norm_of(weight: np.ndarray, dtype: str = "float32") -> Any:
    import torch
    from vllm.config import VllmConfig, set_current_vllm_config
    from vllm.model_executor.layers.layernorm import RMSNorm

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # vLLM's own
        with set_current_vllm_config(VllmConfig()):
            norm = RMSNorm(len(weight), EPSILON, dtype=getattr(torch, dtype))
    norm.weight.data.copy_(torch.from_numpy(weight))
    return norm


def expected(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """arXiv 1910.07467, equation 4, float64."""
    x = x.astype(np.float64)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + EPSILON) * weight


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("num_tokens", [0, 1, 7, 200])
def test_a_norm_is_that_of_the_paper(num_tokens: int, used: list[str]) -> None:
    import torch

    x, weight = random(num_tokens, 128), random(128, seed=1)
    found = norm_of(weight)(torch.from_numpy(x))
    assert used == ["rms_norm"]
    np.testing.assert_allclose(found.numpy(), expected(x, weight), rtol=0, atol=5e-6)


def test_heads_are_normed_in_a_view_of_the_projection(used: list[str]) -> None:
    """As Qwen3 norms queries: rows are apart from each other by queries, keys and values."""
    import torch

    projected, weight = random(9, 256), random(32, seed=1)
    queries = torch.from_numpy(projected).split([128, 64, 64], dim=-1)[0].view(9, 4, 32)
    found = norm_of(weight)(queries)
    assert used == ["rms_norm"]
    np.testing.assert_allclose(found.numpy(), expected(projected[:, :128].reshape(9, 4, 32), weight), rtol=0, atol=5e-6)


def test_a_residual_is_added_first(used: list[str]) -> None:
    import torch

    x, residual, weight = random(9, 128), random(9, 128, seed=1), random(128, seed=2)
    normed, total = norm_of(weight)(torch.from_numpy(x.copy()), torch.from_numpy(residual.copy()))
    assert used == ["fused_add_rms_norm"]
    np.testing.assert_array_equal(total.numpy(), x + residual)
    np.testing.assert_allclose(normed.numpy(), expected(x + residual, weight), rtol=0, atol=5e-6)


def test_a_strided_residual_is_left_as_it_is(used: list[str]) -> None:
    import torch

    x, wide, weight = random(9, 128), random(9, 256, seed=1), random(128, seed=2)
    residual = torch.from_numpy(wide)[:, :128]
    normed, _ = norm_of(weight)(torch.from_numpy(x), residual)
    assert used == []
    np.testing.assert_allclose(normed.numpy(), expected(x + wide[:, :128], weight), rtol=0, atol=5e-6)


@pytest.mark.parametrize(("size", "dtype"), [(128, "bfloat16"), (24, "float32")])
def test_other_types_and_sizes_are_for_torch(size: int, dtype: str, used: list[str]) -> None:
    import torch

    norm = norm_of(random(size, seed=1), dtype)
    x = torch.from_numpy(random(9, size)).to(getattr(torch, dtype))
    assert torch.equal(norm(x), norm.forward_native(x))
    assert used == []
