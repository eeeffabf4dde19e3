"""Memory of the KV cache on a CPU, which vLLM takes whole and fills with zeros before it serves.

A pool that sequences never fill costs that time, and memory besides: vLLM goes through all of its blocks before it uses
one again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

#: Room for what all sequences hold at their longest, and as much three times over for prefixes that are kept.
_TIMES_FULL = 4


def take_what_sequences_fill() -> None:
    """Bounds the KV cache by what its sequences can fill, four times; harmless when called again."""
    import vllm.v1.engine.core as core

    stock = getattr(core, "get_kv_cache_configs", None)
    if stock is None or getattr(stock, "bounded", False):
        return

    def bounded(config: Any, specs: Sequence[Mapping[str, Any]], memory: Sequence[int]) -> Any:
        each = [min(given, _most(config, found.values())) for given, found in zip(memory, specs, strict=True)]
        return stock(config, specs, each)

    bounded.bounded = True  # type: ignore[attr-defined]
    core.get_kv_cache_configs = bounded


def _most(config: Any, layers: Iterable[Any]) -> int:
    """Bytes; of one worker."""
    full = sum(layer.max_memory_usage_bytes(config) for layer in layers)
    return _TIMES_FULL * int(config.scheduler_config.max_num_seqs) * full
