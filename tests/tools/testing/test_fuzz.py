"""Malformed records are refused with a reason and crash nothing; and the fuzzer notices when that is not so."""

from __future__ import annotations

import numpy as np
import pytest

from learner_jax.contracts import weights as contracts
from serving_bridge.vllm.client import VllmClient
from tools.testing.fuzz import __main__ as fuzzing
from tools.testing.fuzz import through_queue, trajectories
from tools.testing.fuzz.__main__ import fuzz


@pytest.mark.parametrize("records", [6_000, pytest.param(100_000, marks=[pytest.mark.soak, pytest.mark.timeout(1200)])])
def test_malformed_records_are_refused_and_crash_nothing(records: int) -> None:
    found = fuzz(records, seed=1)
    assert found.failures == []
    assert found.num_records >= records * 0.95
    refused = {name for name, count in found.refused.items() if count}
    assert {f"trajectory: {kind}" for kind in trajectories.BREAKING} <= refused
    # Readers that take whatever comes would pass all of the above.
    assert {"weight manifest", "checkpoint manifest", "answer", "log-probs of a prompt", "status of workers",
            "whether paused", "name of the weights", "replica row", "orders to a fleet",
            "row of the queue"} <= refused  # fmt: skip


def test_valid_groups_pass_through_the_queue() -> None:
    rng = np.random.default_rng(0)
    payloads = {number: contracts.encode_group(trajectories.valid_group(rng, number)) for number in range(20)}
    assert through_queue.lease_all(payloads) == (20, [])


def test_a_check_that_is_missing_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving_bridge.queue.payloads.check_group", lambda group, limits: None)
    assert any("the queue took" in failure or "AssertionError" in failure for failure in fuzz(800, seed=2).failures)


def test_rows_that_are_believed_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def believed(group_id: str) -> int:
        index = group_id.rpartition("/")[2]
        return int(index) if index.isdecimal() else 0

    monkeypatch.setattr("serving_bridge.queue.payloads.group_index", believed)
    monkeypatch.setattr("serving_bridge.queue.repair.repair", lambda session: 0)
    monkeypatch.setattr("serving_bridge.queue.consumer.repair", lambda session: 0)
    found = fuzz(4_000, seed=4).failures
    assert any("DamagedRowError" in failure for failure in found), found


def test_a_reader_that_crashes_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    async def careless(client: VllmClient) -> bool:
        return (await client._http.request("GET", "/is_paused"))[0] == ord("{")

    monkeypatch.setattr(VllmClient, "is_paused", careless)
    monkeypatch.setattr(fuzzing, "_trajectories", lambda *_: None)  # which have other readers, as rows have
    monkeypatch.setattr(fuzzing.rows, "damage_rows", lambda rng: (0, []))
    assert any("whether paused" in failure and "IndexError" in failure for failure in fuzz(8_000, seed=3).failures)
