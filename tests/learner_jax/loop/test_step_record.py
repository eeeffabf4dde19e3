"""The line that is logged of a step, the reference's way through a run, and publishing's end."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from learner_jax.batches import sequences
from learner_jax.contracts import Position
from learner_jax.hosts import Hosts
from learner_jax.loop import device_changes
from learner_jax.loop.device_changes import TooManyChangesError
from learner_jax.loop.kl_control import KLControl
from learner_jax.loop.publishing import Publishing, _in_background
from learner_jax.loop.step_metrics import TrainingError, merged, require_honest_ratios, row_counts
from learner_jax.loop.step_record import log_history
from learner_jax.settings import KLSettings
from tests.support.trajectories import make_group

# The step's line.


def test_maxima_stay_sums_add_up_and_the_rest_are_means() -> None:
    one = {"a_max": 1.0, "a_sum": 1.0, "a_tokens": 2.0, "a_flops": 3.0, "a_s": 4.0, "loss": 1.0, "grad_norm": 1.0}
    other = {name: 3 * value for name, value in one.items()}
    flags = {"empty": 0.0, "skipped": 0.0}
    found = merged([one | flags, other | flags | {"skipped": 1.0}])
    assert found == {
        "a_max": 3.0, "a_sum": 4.0, "a_tokens": 8.0, "a_flops": 12.0, "a_s": 16.0, "loss": 2.0, "grad_norm": 2.0,
        "empty": 0.0, "skipped": 1.0,
    }  # fmt: skip


def test_slots_and_tokens_are_those_of_all_hosts() -> None:
    plan: Any = SimpleNamespace(sources=np.zeros((2, 4)), real_share=0.75)
    hosts: Any = SimpleNamespace(gather=lambda value, what: [value, [2, 1, 5.0]])
    assert row_counts(plan, 3.0, hosts) == {"slot_tokens": 10, "real_tokens": 7, "model_flops": 8}


@pytest.mark.parametrize(
    ("lagged", "largest", "refused"), [(16, 0.0, True), (15, 0.0, False), (15.6, 0.0, True), (99, 1e-9, False)]
)
def test_ratios_of_exactly_one_are_refused_from_sixteen_tokens_on(lagged: float, largest: float, refused: bool) -> None:
    metrics = {"lagged_tokens": lagged, "lagged_log_ratio_max": largest}
    if not refused:
        require_honest_ratios(metrics, step=3, changed_version=2)
        return
    with pytest.raises(TrainingError, match="step 3: 16 tokens of versions older than 2"):
        require_honest_ratios(metrics, step=3, changed_version=2)


def test_history_is_logged_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    logged: list[dict[str, Any]] = []

    def log(event: str, **fields: Any) -> None:
        logged.append({"event": event} | fields)

    groups = [make_group("run/0", version=4), make_group("run/1", version=2)]
    taken: Any = SimpleNamespace(groups=groups, group_ids=["run/0", "run/1"])
    monkeypatch.delenv("WEIR_RECORD_HISTORY", raising=False)
    log_history(log, "consumed", step=1, taken=taken)
    assert logged == []
    monkeypatch.setenv("WEIR_RECORD_HISTORY", "1")
    log_history(log, "consumed", step=1, taken=taken, version=3)
    log_history(log, "life", step=1)
    assert [(r["event"], r["step"], r.get("groups"), r.get("oldest"), r.get("version")) for r in logged] == [
        ("consumed", 1, ["run/0", "run/1"], [4, 2], 3),
        ("life", 1, None, None, None),
    ]


# The reference.


def control(log: list[int] | None = None, *, reference: Any = None, hosts: int = 1, **kl: Any) -> KLControl:
    scored: list[int] = []

    def logprobs(params: Any, tokens: np.ndarray, sampled: Any, lengths: Any) -> np.ndarray:
        scored.append(len(tokens))
        return np.full(tokens.shape, float(params["w"][0]), np.float32)

    settings = SimpleNamespace(
        loss=SimpleNamespace(kl=KLSettings(**kl)), sequence_length=8, microbatch_rows=2, row_lengths=(4, 8)
    )
    engine: Any = SimpleNamespace(
        settings=settings, hosts=SimpleNamespace(count=hosts), statistics=SimpleNamespace(logprobs=logprobs)
    )
    found = KLControl(
        engine, {"w": jnp.array([1.0])}, reference=reference,
        log=lambda event, step: None if log is None else log.append(step),
    )  # fmt: skip
    found.scored = scored  # type: ignore[attr-defined]
    return found


def measured(found: KLControl) -> float:
    rows, reference = found.reference()
    assert rows is not None
    assert reference is not None
    return float(reference(rows)[0, 0])


def test_without_a_coefficient_there_is_no_reference() -> None:
    off = control()
    off.arrived([make_group()])
    assert (off.is_on, off.saved_reference, off.reference()) == (False, None, (None, None))
    off.found(lambda: pytest.fail("asked of a run without a reference"))
    off.resumed(Position(1, 1, 0, (), 0.5), None)
    assert off.coefficient == 0.0


def test_the_reference_is_the_start_unless_given_and_saved_only_where_it_moves() -> None:
    for given, value in ((None, 1.0), ({"w": jnp.array([3.0])}, 3.0)):
        fixed = control(reference=given, coefficient=0.1)
        fixed.arrived([make_group()])
        assert measured(fixed) == value
        assert fixed.saved_reference is None
    assert control(coefficient=0.1, reset_every=2).saved_reference is not None
    fixed.found(lambda: False)
    assert fixed.saved_reference is None
    fixed.found(lambda: True)
    assert fixed.saved_reference is not None


def test_a_reference_moves_every_so_many_steps_to_the_policy_without_its_critic() -> None:
    moves: list[int] = []
    moving = control(moves, coefficient=0.1, reset_every=2)
    for step in (1, 2, 3, 4):
        moving.step_completed(step, {"kl": 1.0}, {"w": jnp.array([10.0 * step]), "value": {"head": jnp.ones(1)}})
    assert moves == [2, 4]
    assert moving.saved_reference is not None
    assert moving.saved_reference.keys() == {"w"}
    moving.arrived([make_group()])
    assert measured(moving) == 40.0
    assert moving.coefficient == 0.1


def test_a_coefficient_is_resumed_only_where_it_moves() -> None:
    saved = Position(1, 1, 0, (), 0.5)
    fixed, moving = control(coefficient=0.1), control(coefficient=0.1, target=0.2)
    for found in (fixed, moving):
        found.resumed(saved, {"w": jnp.array([7.0])})
    assert (fixed.coefficient, moving.coefficient) == (0.1, 0.5)
    fixed.arrived([make_group()])
    assert measured(fixed) == 7.0
    moving.resumed(Position(1, 1, 0, (), 0.0), None)  # of a run that had no coefficient yet
    assert moving.coefficient == 0.5
    moving.step_completed(1, {"kl": 9.0}, {})
    assert moving.coefficient > 0.5


@pytest.mark.parametrize(("hosts", "ahead"), [(1, [4]), (2, [])])
def test_one_host_computes_ahead_and_several_compute_together(hosts: int, ahead: list[int]) -> None:
    """Two groups of six tokens fill a microbatch of two rows of eight, whose bound is 0.9 of 16."""
    found = control(coefficient=0.1, hosts=hosts)
    groups = [make_group(f"run/{i}", size=2, prompt_tokens=2, answer_tokens=1) for i in range(3)]  # six tokens each
    found.arrived(groups)
    assert found.scored == ahead  # type: ignore[attr-defined]
    found.reference()
    assert sum(found.scored) == 6  # type: ignore[attr-defined]
    expected = sequences(groups, sequence_length=8)
    assert expected.tokens.shape == (6, 8)


# Publishing.


def test_the_end_waits_for_the_version_that_is_being_stored() -> None:
    stored = threading.Event()
    publishing = Publishing(
        SimpleNamespace(platform="cpu", hosts=Hosts()),  # type: ignore[arg-type]
        SimpleNamespace(),  # type: ignore[arg-type]
        [], keep=0, max_wait_s=20.0, log=lambda *_, **__: None,
    )  # fmt: skip
    publishing.close()

    def store() -> None:
        threading.Event().wait(0.05)
        stored.set()

    publishing._running = 1, _in_background(store)
    publishing.close()
    assert stored.is_set()


# Changes on the device.


def test_there_is_room_for_the_share_rounded_up_and_for_no_more() -> None:
    """Of ten elements a quarter: three may change, four may not."""
    old = jnp.zeros((2, 10))
    three, four = (old.at[1, jnp.array(where)].set(1.0) for where in ([0, 4, 9], [0, 4, 8, 9]))
    first, second = device_changes._shard_changes(three, old, 0.25)
    assert first[0].size == 0
    assert (second[0].tolist(), second[1].tolist()) == ([0, 4, 9], [1, 1, 1])
    with pytest.raises(TooManyChangesError, match="4 of 10 elements changed, there is room for 3"):
        device_changes._shard_changes(four, old, 0.25)


def test_pieces_of_a_tensor_are_put_in_order() -> None:
    found = device_changes._merged(
        "a", [(np.array([5, 7]), np.array([1.0, 2.0])), (np.array([0, 6]), np.array([3.0, 4]))]
    )
    assert (found.name, found.indices.tolist(), found.values.tolist()) == ("a", [0, 5, 6, 7], [3, 1, 4, 2])
    places = device_changes._in_tensor(np.array([0, 3]), (2, 2), (slice(2, 4), slice(None)), (4, 2))
    assert places.tolist() == [4, 7]
