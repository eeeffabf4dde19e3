"""The KV cache on a CPU is no larger than its sequences can use."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from serving_bridge.vllm_plugin import cache_memory
from tests.support.weight_world import SETTINGS, World

pytest.importorskip("vllm", reason="vLLM is not installed")
pytest_plugins = ["tests.support.weight_fixtures"]

#: Blocks of 32 tokens; keys and values of one head of 16 elements in float32.
BLOCK_BYTES = 32 * 2 * 16 * 4


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> Any:
    """How many bytes each worker takes, for the bytes it is given and its layers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # vLLM's own, while it is imported
        import torch
        import vllm.v1.engine.core as core
        from vllm.v1.kv_cache_interface import FullAttentionSpec, SlidingWindowSpec

    monkeypatch.setattr(core, "get_kv_cache_configs", lambda config, specs, memory: memory)
    for _ in range(2):  # plugins are loaded many times
        cache_memory.take_what_sequences_fill()
    shape: dict[str, Any] = {"block_size": 32, "num_kv_heads": 1, "head_size": 16, "dtype": torch.float32}
    layers = {
        "full": FullAttentionSpec(**shape),
        "window": SlidingWindowSpec(**shape, sliding_window=33),
    }

    def take(workers: Sequence[Sequence[str]], memory: list[int], *, sequences: int, length: int) -> list[int]:
        config = SimpleNamespace(
            scheduler_config=SimpleNamespace(max_num_seqs=sequences, max_num_batched_tokens=64),
            model_config=SimpleNamespace(max_model_len=length),
            parallel_config=SimpleNamespace(decode_context_parallel_size=1),
            max_in_flight_tokens=64,
        )
        specs = [{f"{index}": layers[name] for index, name in enumerate(worker)} for worker in workers]
        found: list[int] = core.get_kv_cache_configs(config, specs, memory)
        return found

    return take


def test_a_small_model_takes_four_times_what_its_sequences_fill(taken: Any) -> None:
    assert taken([["full", "full"]], [1 << 30], sequences=8, length=100) == [4 * 8 * 2 * 4 * BLOCK_BYTES]


def test_a_large_one_takes_what_it_is_given(taken: Any) -> None:
    assert taken([["full", "full"]], [9000], sequences=8, length=100) == [9000]


def test_each_worker_counts_its_own_layers(taken: Any) -> None:
    one, two = taken([["full"], ["full"] * 3], [1 << 30, 1 << 30], sequences=8, length=64)
    assert two == 3 * one


def test_a_window_takes_less(taken: Any) -> None:
    window, full = (taken([[layer]], [1 << 30], sequences=8, length=4096)[0] for layer in ("window", "full"))
    assert 0 < window < full / 8


def test_a_server_takes_it(world: World) -> None:
    found = re.findall(r"KV cache size: ([\d,]+) tokens", world.replica.log_path.read_text())
    assert int(found[-1].replace(",", "")) == 4 * SETTINGS.max_num_seqs * SETTINGS.max_model_len
