"""KV cache managers whose allocation is spared inside blocks end up as vLLM's own do, step for step."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed")

BLOCK_TOKENS, NUM_BLOCKS = 4, 24


@pytest.fixture(scope="module")
def made() -> Callable[..., tuple[Any, Callable[[str, list[int]], Any]]]:
    """Makes a manager of one group of blocks, and what makes its requests."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # vLLM's own, while it is imported
        import torch
        from vllm.sampling_params import SamplingParams
        from vllm.utils.hashing import sha256
        from vllm.v1.core.kv_cache_manager import KVCacheManager
        from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
        from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec, SlidingWindowSpec
        from vllm.v1.request import Request, RequestStatus
    init_none_hash(sha256)
    hasher = get_request_block_hasher(BLOCK_TOKENS, sha256)

    def make(window: int | None = None) -> tuple[Any, Callable[[str, list[int]], Any]]:
        shape: dict[str, Any] = {"block_size": BLOCK_TOKENS, "num_kv_heads": 1, "head_size": 8, "dtype": torch.float32}
        spec = FullAttentionSpec(**shape) if window is None else SlidingWindowSpec(**shape, sliding_window=window)
        manager = KVCacheManager(
            KVCacheConfig(num_blocks=NUM_BLOCKS, kv_cache_tensors=[], kv_cache_groups=[KVCacheGroupSpec(["a"], spec)]),
            max_model_len=64,
            scheduler_block_size=BLOCK_TOKENS,
            hash_block_size=BLOCK_TOKENS,
            enable_caching=True,
        )

        def request(name: str, prompt: list[int]) -> Any:
            found = Request(name, prompt, SamplingParams(max_tokens=50), None, block_hasher=hasher)
            found.status = RequestStatus.RUNNING
            return found

        return manager, request

    return make


class Engine:
    """What a scheduler does with its manager: answers begin, get a token in each step, and end."""

    def __init__(self, manager: Any, request: Callable[[str, list[int]], Any]) -> None:
        self.manager, self._request = manager, request
        self.running: dict[str, Any] = {}

    def begin(self, name: str, prompt: list[int]) -> bool:
        request = self._request(name, prompt)
        blocks, num_cached, _ = self.manager.get_computed_blocks(request)
        if self.manager.allocate_slots(request, len(prompt) - num_cached, num_cached, blocks) is None:
            return False
        request.num_computed_tokens = len(prompt)
        self.running[name] = request
        return True

    def step(self, token: int) -> list[list[tuple[int, ...]] | None]:
        """Blocks that each answer was given anew; one that finds no room ends."""
        given = []
        self.manager.new_step_starts()
        for name, request in list(self.running.items()):
            request.append_output_token_ids(token)
            blocks = self.manager.allocate_slots(request, 1, num_lookahead_tokens=0)
            given.append(None if blocks is None else [tuple(ids) for ids in blocks.get_block_ids()])
            if blocks is None:
                self.end(name)
            else:
                request.num_computed_tokens += 1
        return given

    def end(self, name: str) -> None:
        self.manager.free(self.running.pop(name))

    def state(self) -> Any:
        """Blocks of each answer, blocks that are free, and what the prefix cache holds."""
        pool = self.manager.block_pool
        blocks = {name: self.manager.get_block_ids(name) for name in self.running}
        hashes = [block.block_hash for block in pool.blocks]
        return blocks, pool.get_num_free_blocks(), hashes


@pytest.mark.parametrize("seed", range(5))
def test_every_step_gives_what_vllms_own_manager_gives(made: Any, seed: int) -> None:
    from serving_bridge.vllm_plugin.next_slots import keep_slots_inside_blocks

    rng = random.Random(seed)
    stock, spared = Engine(*made()), Engine(*made())
    asked: list[int] = []
    own = spared.manager.allocate_slots

    def noted(*arguments: Any, **options: Any) -> Any:
        asked.append(1)
        return own(*arguments, **options)

    spared.manager.allocate_slots = noted
    keep_slots_inside_blocks(spared.manager)
    num_steps = 0
    for number in range(120):
        if rng.random() < 0.3:
            prompt = [rng.randrange(2) for _ in range(rng.randrange(2, 12))]
            assert stock.begin(str(number), prompt) == spared.begin(str(number), prompt)
        token = rng.randrange(2)
        num_steps += len(stock.running)
        assert stock.step(token) == spared.step(token)
        assert stock.state() == spared.state()
        if stock.running and rng.random() < 0.2:
            name = rng.choice(sorted(stock.running))
            stock.end(name)
            spared.end(name)
            assert stock.state() == spared.state()
    assert len(asked) < 0.75 * num_steps, "nothing was spared"


def test_caches_of_other_kinds_are_left_to_vllm(made: Any) -> None:
    from serving_bridge.vllm_plugin.next_slots import keep_slots_inside_blocks

    manager, _ = made(window=8)
    stock = manager.allocate_slots
    keep_slots_inside_blocks(manager)
    assert manager.allocate_slots == stock
