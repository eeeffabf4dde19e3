"""A swap inside the server: its order, how far it came, and what a later round leaves of it; the engine is a stub."""

from __future__ import annotations

import asyncio
import json
import warnings
from collections.abc import AsyncIterator, Callable
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest

from serving_bridge.access import Refused, Serve, Swap, batch_of
from serving_bridge.vllm_plugin import SwapAnswer

pytest.importorskip("vllm", reason="vLLM is not installed")

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # vLLM's own, while it is imported
    from vllm.logprobs import FlatLogprobs

    from serving_bridge.vllm_plugin import swap as module
    from serving_bridge.vllm_plugin.swap import serve, swap

CONTROL = "c" * 64
ALL = ["pause", "update 3 of r", "finish unproven", "probe [1, 2]", "probe [1, 2, 3]"]


@pytest.fixture(autouse=True)
def no_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        module, "weight_operation_metrics", lambda: SimpleNamespace(record=lambda operation: nullcontext())
    )


class Engine:
    """Notes what it is asked; fails at one step."""

    model_config = SimpleNamespace(max_model_len=10)

    def __init__(self, fails_at: str = "") -> None:
        self.done: list[str] = []
        self.batches: set[tuple[str, int] | None] = set()
        self.priorities: set[int] = set()
        self._fails_at = fails_at
        self.renderer, self.engine_core, self.output_processor = self, self, self

    def _do(self, what: str) -> None:
        if what == self._fails_at:
            raise RuntimeError(f"{what} on purpose")
        self.done.append(what)

    def get_num_unfinished_requests(self) -> int:
        return 5 if "pause" not in self.done else 0

    async def clear_mm_cache_async(self) -> None:
        """It has none."""

    async def pause_scheduler_async(self, *, mode: str, clear_cache: bool) -> None:
        assert (mode, clear_cache) == ("keep", True)
        self._do("pause")

    async def update_weights(self, request: Any) -> None:
        info = request.update_info
        assert info["content_sha256"] == "0" * 64
        self._do(f"update {info['version']} of {info['round_id']}")

    async def finish_weight_update(self, weight_version: str) -> None:
        self._do(f"finish {weight_version}")

    async def update_weight_version(self, name: str) -> None:
        self._do(f"name {name}")

    async def resume_generation(self) -> None:
        self._do("resume")

    async def generate(self, prompt: Any, parameters: Any, name: str, *, priority: int) -> AsyncIterator[Any]:
        tokens = prompt["prompt_token_ids"]
        self._do(f"probe {tokens}")
        self.batches.add(batch_of(name, CONTROL))
        self.priorities.add(priority)
        assert (parameters.max_tokens, parameters.temperature, parameters.prompt_logprobs) == (1, 0.0, 0)
        found = FlatLogprobs()
        found.append(None)
        for token in tokens[1:]:
            found.append_fast([token], [-float(token)], iter([1]), [None])  # type: ignore[arg-type]
        yield SimpleNamespace(outputs=[], prompt_logprobs=found)


def asked(*, applies: bool = True) -> Swap:
    body = {"version": 3, "content_sha256": "0" * 64, "round_id": "r", "golden": [[1, 2], [1, 2, 3]]}
    return msgspec.json.decode(json.dumps(body | {"applies": applies}), type=Swap)


def swapped(engine: Engine, check: Callable[[], None] = lambda: None, *, applies: bool = True) -> SwapAnswer:
    work = swap(engine, asked(applies=applies), control_token=CONTROL, check=check)  # type: ignore[arg-type]
    status, payload = asyncio.run(work)
    assert status == 200
    return msgspec.msgpack.decode(payload, type=SwapAnswer)


def test_weights_change_in_the_pause_lose_their_name_and_are_proven_in_one_batch() -> None:
    engine = Engine()
    found = swapped(engine)
    assert engine.done == ALL
    assert (found.is_applied, found.error, found.num_running) == (True, "", 5)
    assert [np.frombuffer(a.prompt_logprobs or b"", "<f4").tolist() for a in found.proof] == [[-2.0], [-2.0, -3.0]]
    ((_, size),) = (batch for batch in engine.batches if batch is not None)
    assert (size, len(engine.batches), engine.priorities) == (2, 1, {-1})
    assert 0 < found.proof_s < 10


def test_weights_that_are_applied_lose_their_name_and_are_proven() -> None:
    engine = Engine()
    assert swapped(engine, applies=False).is_applied
    assert engine.done == ["pause", "name unproven", *ALL[3:]]


def test_an_engine_that_is_not_paused_is_a_failure_of_the_server() -> None:
    engine = Engine("pause")
    status, payload = asyncio.run(swap(engine, asked(), control_token=CONTROL, check=lambda: None))  # type: ignore[arg-type]
    assert status == 500
    assert "pause on purpose" in msgspec.json.decode(payload)["error"]["message"]
    assert engine.done == []


@pytest.mark.parametrize(("step", "is_applied"), [(ALL[1], False), (ALL[2], False), (ALL[3], True), (ALL[4], True)])
def test_what_failed_is_told_with_how_far_it_came(step: str, is_applied: bool) -> None:
    engine = Engine(step)
    found = swapped(engine)
    assert (found.is_applied, found.error, found.proof) == (is_applied, f"{step} on purpose", [])
    assert step not in engine.done
    assert "resume" not in engine.done


@pytest.mark.parametrize(("checks", "done"), [(0, ALL[:1]), (1, ALL[:2])])
def test_a_later_round_ends_a_swap_before_its_next_step(checks: int, done: list[str]) -> None:
    engine, left = Engine(), iter(range(checks))

    def check() -> None:
        if next(left, None) is None:
            raise Refused(409, "followed")

    found = swapped(engine, check)
    assert (found.is_applied, found.error, found.proof) == (False, "followed", [])
    assert engine.done == done


def served(engine: Engine, check: Callable[[], None] = lambda: None) -> int:
    return asyncio.run(serve(engine, Serve(version=3), check=check))[0]  # type: ignore[arg-type]


def test_weights_are_named_and_then_sampled_from() -> None:
    engine = Engine()
    assert served(engine) == 200
    assert engine.done == ["name 3", "resume"]


def test_what_can_not_be_named_is_not_sampled_from() -> None:
    engine = Engine("name 3")
    assert (served(engine), engine.done) == (500, [])


def test_a_later_rounds_pause_is_not_ended() -> None:
    def check() -> None:
        raise Refused(409, "followed")

    engine = Engine()
    assert served(engine, check) >= 500
    assert engine.done == ["name 3"]
