"""The KV cache slot of a running answer's next token, found without vLLM's allocation where that would do nothing.

vLLM asks its KV cache manager anew for every answer in every step, which takes a tenth of an engine step of a small
model (docs/benchmarks.md). Inside a block there is nothing to allocate, to free or to cache.
"""

from __future__ import annotations

from typing import Any

from vllm.v1.core.kv_cache_manager import KVCacheBlocks, KVCacheManager
from vllm.v1.core.single_type_kv_cache_manager import FullAttentionManager
from vllm.v1.request import Request, RequestStatus

#: how vLLM's scheduler asks for the slots of an answer that runs
_RUNNING_OPTIONS = {"num_lookahead_tokens": 0}


def keep_slots_inside_blocks(manager: KVCacheManager) -> None:
    """Has `allocate_slots` answer at once for a token inside a block that the answer has already.

    Models with other caches than that of full attention, and blocks that are cached in parts, are left as they are.
    """
    managers = manager.coordinator.single_type_managers
    if len(managers) != 1 or type(managers[0]) is not FullAttentionManager:
        return
    size = managers[0].block_size
    if size != manager.block_pool.hash_block_size:
        return
    stock, nothing = manager.allocate_slots, manager.empty_kv_cache_blocks

    def allocate_slots(request: Request, num_new_tokens: int, *more: Any, **options: Any) -> KVCacheBlocks | None:
        # The block's first token has it allocated, its last one has it cached.
        is_inside = num_new_tokens == 1 and 0 < request.num_computed_tokens % size < size - 1
        if is_inside and request.status == RequestStatus.RUNNING and options == _RUNNING_OPTIONS and not more:
            return nothing
        return stock(request, num_new_tokens, *more, **options)

    manager.allocate_slots = allocate_slots
