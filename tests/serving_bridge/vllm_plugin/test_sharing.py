"""What is held beside users, what gives up its place, and when nothing is held; vLLM's own scheduler is a stub here."""

from __future__ import annotations

import warnings
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed")

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # vLLM's own, while it is imported
    from vllm.v1.core.sched.interface import PauseState
    from vllm.v1.engine import EngineCoreEvent, EngineCoreEventType
    from vllm.v1.request import RequestStatus

    from serving_bridge.vllm_plugin.sharing import Sharing
    from serving_bridge.vllm_plugin.user_delays import UserDelays

BLOCK_TOKENS, PLACES = 16, 8
USER, TRAINING = 0, 30


class Share:
    """A share of two answers, and what it was told."""

    alone_s, extra_s = 0.01, 0.0

    def __init__(self) -> None:
        self.told: list[tuple[float, int]] = []

    def next_step(self) -> int:
        return 2

    def took(self, seconds: float, training: int) -> None:
        self.told.append((round(seconds, 6), training))


class Engine:
    """vLLM's scheduler as far as it is used, with so many free KV blocks; requests hold a block each."""

    def __init__(self, free_blocks: int = 100) -> None:
        self.requests: dict[str, Any] = {}
        self.running: list[Any] = []
        self.current_step, self.max_num_active_reqs = 0, PLACES
        self.pause_state = PauseState.UNPAUSED
        self.cache_config = SimpleNamespace(block_size=BLOCK_TOKENS)
        self.free_blocks = free_blocks
        self.kv_cache_manager = SimpleNamespace(block_pool=self, get_block_ids=self.get_block_ids)
        self.num_gpu_blocks = 101  # of which one stands for tokens outside a window
        self.blocks: dict[str, tuple[list[int], ...]] = {}
        self.now_s = 0.0
        self.share = Share()
        clock = lambda: self.now_s  # noqa: E731  (monotonic and wall alike)
        self.sharing = Sharing(self, self.share, UserDelays(0.15), 20, clock, clock)  # type: ignore[arg-type]

    def get_num_free_blocks(self) -> int:
        return self.free_blocks

    def get_block_ids(self, name: str) -> tuple[list[int], ...]:
        return self.blocks.get(name, ([],))

    def _request_blocks_can_be_freed(self, request: Any) -> bool:
        return not request.is_written

    def _preempt_request(self, request: Any, now_s: float) -> None:
        request.status = RequestStatus.PREEMPTED
        self.free_blocks += 1

    def add(self, name: str, priority: int, *, runs: bool = True, tokens: int = 20) -> Any:
        request = SimpleNamespace(
            request_id=name, priority=priority, arrival_time=self.now_s, num_tokens=tokens, is_written=False,
            status=RequestStatus.RUNNING if runs else RequestStatus.WAITING, next_decode_eligible_step=0,
            num_output_tokens=5, events=[EngineCoreEvent(EngineCoreEventType.QUEUED, self.now_s)],
        )  # fmt: skip
        self.requests[name] = request
        if runs:
            self.running.append(request)
        self.sharing.added(request)
        return request

    def step(self, took_s: float = 0.01, beside: int = 0) -> tuple[list[str], int]:
        """Names of what is in the next step, and how many that run or wait may be active then."""
        with self.sharing.step(beside):
            self.current_step += 1
            names = [r.request_id for r in self.running if r.next_decode_eligible_step <= self.current_step]
            places = self.max_num_active_reqs
        assert self.max_num_active_reqs == PLACES
        self.end(names, took_s)
        return names, places

    def end(self, names: list[str], took_s: float, new: tuple[str, ...] = ()) -> None:
        self.now_s += took_s
        fresh = [SimpleNamespace(req_id=name) for name in new]
        step: Any = SimpleNamespace(scheduled_new_reqs=fresh, num_scheduled_tokens=dict.fromkeys(names, 1))
        self.sharing.took(step)


def test_without_users_everything_runs() -> None:
    engine = Engine()
    for number in range(6):
        engine.add(f"t{number}", TRAINING)
    assert engine.step() == ([f"t{number}" for number in range(6)], PLACES)
    assert engine.sharing.num_held == 0


def test_beside_a_user_the_first_of_training_run_and_others_wait_for_them() -> None:
    engine = Engine()
    engine.add("shadow", 40)
    for number in range(4):
        engine.add(f"t{number}", TRAINING)
    engine.add("evaluation", 20)
    engine.add("u", USER)
    assert engine.step() == (["t0", "evaluation", "u"], 7)
    assert engine.sharing.num_held == 4
    del engine.requests["u"]
    engine.running.pop()
    assert len(engine.step()[0]) == 6
    assert engine.sharing.num_held == 0


def test_a_user_who_waited_for_trainings_step_has_the_next_ones_alone() -> None:
    """He came 9 ms before its end: 15% of 60 ms."""
    engine = Engine()
    for number in range(3):
        engine.add(f"t{number}", TRAINING)
    engine.step(took_s=0.02)
    user = engine.add("u", USER)
    user.arrival_time = engine.now_s - 0.009
    engine.sharing.added(user)
    assert [len(engine.step()[0]) for _ in range(8)] == [1] * 5 + [3] * 3


def test_training_that_waits_is_let_in_up_to_its_share() -> None:
    engine = Engine()
    engine.add("u", USER)
    engine.add("t0", TRAINING)
    engine.add("t1", TRAINING, runs=False)
    engine.add("u1", USER, runs=False)
    assert engine.step()[1] == 4  # what runs, the user that waits, and one more of training
    assert engine.step(beside=3)[1] == 7


def test_a_user_that_finds_no_place_gets_that_of_the_last_of_training() -> None:
    engine = Engine()
    for number in range(PLACES):
        engine.add(f"t{number}", TRAINING)
    engine.add("u", USER, runs=False)
    assert engine.step() == (["t0", "t1"], PLACES)
    assert engine.requests["t7"].status == RequestStatus.PREEMPTED
    assert len(engine.running) == PLACES - 1


def test_a_user_that_finds_no_memory_gets_that_of_training() -> None:
    engine = Engine(free_blocks=1)
    for number in range(4):
        engine.add(f"t{number}", TRAINING)
    engine.add("u", USER, runs=False, tokens=3 * BLOCK_TOKENS)
    engine.step()
    assert [request.request_id for request in engine.running] == ["t0"]


def test_blocks_that_a_step_may_still_write_are_not_taken() -> None:
    engine = Engine(free_blocks=0)
    engine.add("t0", TRAINING).is_written = True
    engine.add("u", USER, runs=False)
    assert engine.step()[0] == ["t0"]


def test_where_no_user_gets_on_training_goes_on() -> None:
    """A user that waits for what only training's end can give: memory that can't be taken, say."""
    engine = Engine(free_blocks=0)
    for number in range(4):
        engine.add(f"t{number}", TRAINING).is_written = True
    engine.add("u", USER, runs=False)
    steps = [len(engine.step()[0]) for _ in range(20)]
    assert steps.index(4) == 8
    assert steps.count(0) == 2  # after each of these one that takes no longer than planning it
    assert set(steps) == {0, 2, 4}


def test_nothing_is_held_while_the_engine_is_paused() -> None:
    engine = Engine()
    for number in range(4):
        engine.add(f"t{number}", TRAINING)
    engine.add("u", USER)
    engine.pause_state = PauseState.PAUSED_ALL
    assert len(engine.step()[0]) == 5


def test_only_steps_of_users_answers_in_a_row_are_measured() -> None:
    engine = Engine()
    engine.add("t0", TRAINING)
    user = engine.add("u", USER)
    engine.end(["t0"], 1.0)
    engine.end(["t0", "u"], 2.0)  # began beside training alone
    engine.end(["t0", "u"], 0.25)
    engine.end(["u"], 0.125)
    user.num_output_tokens = 0  # reads its prompt
    engine.end(["u", "t0"], 4.0)
    assert engine.share.told == [(0.25, 1), (0.125, 0)]


def test_trainings_time_in_the_queue_is_not_what_it_waited_for_users() -> None:
    engine = Engine()
    engine.add("u", USER)
    new = engine.add("t0", TRAINING, runs=False)
    engine.step(took_s=5.0)
    engine.step(took_s=5.0)
    engine.end(["u", "t0"], 0.0, new=("t0", "u"))
    assert new.events[0].timestamp == 5.0  # the last step that users were in began then
    assert engine.requests["u"].events[0].timestamp == 0.0


def test_memory_of_users_is_counted_once_and_without_trainings() -> None:
    engine = Engine()
    for name, priority in (("u1", USER), ("u2", USER), ("t", TRAINING)):
        engine.add(name, priority)
    assert engine.sharing.users_kv_usage() == 0
    engine.blocks = {"u1": ([1, 2, 3], [0, 4]), "u2": ([1, 2, 5], [0, 6]), "t": ([1, *range(7, 90)],)}
    assert engine.sharing.users_kv_usage() == 0.06
    engine.num_gpu_blocks = 1
    assert engine.sharing.users_kv_usage() == 0
