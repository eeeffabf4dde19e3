"""A paused engine runs whole batches of sealed probes, and sends nothing else; vLLM's own scheduler is a stub here."""

from __future__ import annotations

import warnings
from types import SimpleNamespace
from typing import Any

import pytest

from serving_bridge.access.probes import probe_ids

pytest.importorskip("vllm", reason="vLLM is not installed")

CONTROL = "c" * 64


class Queue(list[Any]):
    """A request queue in the order of arrival."""

    def add_request(self, request: Any) -> None:
        self.append(request)

    def remove_requests(self, requests: Any) -> None:
        self[:] = [request for request in self if request not in requests]


@pytest.fixture
def scheduler(monkeypatch: pytest.MonkeyPatch) -> Any:
    """One that is not paused; `did` is what vLLM's own was asked for, with what it would see then."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # vLLM's own, while it is imported
        from vllm.v1.core.sched.interface import PauseState
        from vllm.v1.request import RequestStatus

        from serving_bridge.vllm_plugin import scheduler as module

    did: list[Any] = []

    def init(self: Any) -> None:
        self.policy, self.running, self.requests = "fcfs", [], {}
        self.waiting, self._pause_state = Queue(), PauseState.UNPAUSED
        self.did, self.max_num_active_reqs, self.max_num_scheduled_tokens = did, 64, 8192
        self.budgets = []

    def add_request(self: Any, request: Any) -> None:
        self.requests[request.request_id] = request
        self.waiting.add_request(request)

    def set_pause_state(self: Any, state: Any) -> None:
        did.append("state")
        self._pause_state = state

    def schedule(self: Any, throttle: bool = False) -> Any:
        names = [request.request_id for request in self.waiting]
        self.budgets.append(self.max_num_scheduled_tokens)
        did.append((names, self._pause_state == PauseState.UNPAUSED, throttle))
        return "planned"

    def finish_requests(self: Any, names: set[str], status: Any) -> None:
        assert status == RequestStatus.FINISHED_ABORTED
        if names:
            did.append(sorted(names))

    base = module.Scheduler
    monkeypatch.setattr(base, "__init__", init)
    monkeypatch.setattr(base, "add_request", add_request)
    monkeypatch.setattr(base, "set_pause_state", set_pause_state)
    monkeypatch.setattr(base, "pause_state", property(lambda self: self._pause_state), raising=False)
    monkeypatch.setattr(base, "reset_prefix_cache", lambda self, **asked: did.append(asked), raising=False)
    monkeypatch.setattr(base, "get_num_unfinished_requests", lambda self: 0)
    monkeypatch.setattr(base, "schedule", schedule)
    monkeypatch.setattr(base, "finish_requests", finish_requests)
    monkeypatch.setattr(base, "kv_cache_manager", None, raising=False)
    monkeypatch.setattr(module, "keep_slots_inside_blocks", lambda manager: None)
    monkeypatch.setenv("WEIR_CONTROL_TOKEN", CONTROL)
    monkeypatch.setenv("WEIR_TRAINING_SLOWDOWN", "0.15")
    monkeypatch.setenv("WEIR_USERS_BELOW", "20")
    made = module.ProbingScheduler()
    made.states = PauseState  # type: ignore[attr-defined]
    return made


def pause(scheduler: Any) -> None:
    scheduler.set_pause_state(scheduler.states.PAUSED_ALL)
    scheduler.did.clear()


def add(scheduler: Any, name: str, max_tokens: int = 1) -> None:
    name = f"generate-tokens-{name}"
    scheduler.add_request(SimpleNamespace(request_id=name, max_tokens=max_tokens, priority=30, num_tokens=7))


def planned(scheduler: Any) -> tuple[list[str], bool]:
    """What vLLM's own scheduler saw in one step: requests, and whether it was unpaused."""
    scheduler.did.clear()
    state = scheduler.pause_state
    assert scheduler.schedule(True) == "planned"
    ((names, unpaused, throttle),) = scheduler.did
    assert throttle
    assert scheduler.pause_state == state
    return [name.removeprefix("generate-tokens-") for name in names], unpaused


def test_without_its_token_an_engine_does_not_start(scheduler: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WEIR_CONTROL_TOKEN")
    with pytest.raises(RuntimeError, match="WEIR_CONTROL_TOKEN is not set"):
        type(scheduler)()


def test_a_batch_of_probes_runs_when_all_of_it_has_come_and_held_requests_beside_it(scheduler: Any) -> None:
    first, second = probe_ids(2, CONTROL)
    add(scheduler, "held", 9)
    pause(scheduler)
    add(scheduler, first)
    assert scheduler.get_num_unfinished_requests() == 0
    assert planned(scheduler) == (["held", first], False)
    add(scheduler, second)
    assert scheduler.get_num_unfinished_requests() == 2
    assert planned(scheduler) == (["held", first, second], True)


def test_probes_of_an_incomplete_batch_wait_while_others_run(scheduler: Any) -> None:
    (alone,), (half, _) = probe_ids(1, CONTROL), probe_ids(2, CONTROL)
    pause(scheduler)
    add(scheduler, half)
    assert planned(scheduler)[1] is False
    add(scheduler, alone)
    assert planned(scheduler)[1] is True
    del scheduler.requests[f"generate-tokens-{alone}"]  # it has ended
    assert scheduler.get_num_unfinished_requests() == 0
    assert planned(scheduler)[1] is False


def test_only_sealed_requests_for_one_token_after_the_pause_are_probes(scheduler: Any) -> None:
    before, long, sound = (probe_ids(1, CONTROL)[0] for _ in range(3))
    add(scheduler, before)
    pause(scheduler)
    add(scheduler, long, max_tokens=2)
    add(scheduler, probe_ids(1, "other")[0])
    add(scheduler, "weir-probe-x")
    assert scheduler.get_num_unfinished_requests() == 0
    add(scheduler, sound)
    assert scheduler.get_num_unfinished_requests() == 1


def test_no_probe_begins_beside_a_request_that_still_runs(scheduler: Any) -> None:
    first, second = (probe_ids(1, CONTROL)[0] for _ in range(2))
    pause(scheduler)
    add(scheduler, first)
    add(scheduler, second)
    scheduler.running = [SimpleNamespace(request_id=f"generate-tokens-{first}")]
    assert scheduler.get_num_unfinished_requests() == 2
    scheduler.running.append(SimpleNamespace(request_id="generate-tokens-held"))
    assert scheduler.get_num_unfinished_requests() == 0


def test_a_proof_that_takes_several_steps_goes_on(scheduler: Any) -> None:
    (probe,) = probe_ids(1, CONTROL)
    pause(scheduler)
    add(scheduler, probe)
    assert planned(scheduler)[1] is True
    scheduler.running = [SimpleNamespace(request_id="generate-tokens-held")]  # since that step
    assert scheduler.get_num_unfinished_requests() == 1
    assert planned(scheduler)[1] is True


def test_the_end_of_a_pause_forgets_its_probes_and_their_cache_before_anything_runs(scheduler: Any) -> None:
    states = scheduler.states
    pause(scheduler)
    add(scheduler, probe_ids(1, CONTROL)[0])
    scheduler.set_pause_state(states.PAUSED_ALL)
    assert scheduler.did == ["state"]
    assert scheduler.get_num_unfinished_requests() == 0
    scheduler.did.clear()
    scheduler.set_pause_state(states.UNPAUSED)
    assert scheduler.did == [{"reset_running_requests": True}, "state"]
    scheduler.did.clear()
    scheduler.set_pause_state(states.UNPAUSED)
    assert scheduler.did == ["state"]


def test_a_pause_that_keeps_the_caches_runs_no_probe(scheduler: Any) -> None:
    (other,) = [state for state in scheduler.states if state.name not in ("UNPAUSED", "PAUSED_ALL")]
    scheduler.set_pause_state(other)
    add(scheduler, probe_ids(1, CONTROL)[0])
    assert scheduler.get_num_unfinished_requests() == 0


def test_long_answers_do_not_put_a_proof_off(scheduler: Any) -> None:
    pause(scheduler)
    for name in probe_ids(2, CONTROL):
        add(scheduler, name)
    scheduler.schedule()
    assert scheduler.budgets == [2 * 7 + 2048]
    scheduler.set_pause_state(scheduler.states.UNPAUSED)
    scheduler.schedule()
    assert scheduler.budgets[1:] == [8192]


def test_what_a_proof_left_in_the_cache_is_used_when_the_pause_ends(scheduler: Any) -> None:
    pause(scheduler)
    add(scheduler, probe_ids(1, CONTROL)[0])
    scheduler.schedule()
    scheduler.did.clear()
    scheduler.set_pause_state(scheduler.states.UNPAUSED)
    assert scheduler.did == ["state"]


def sent(scheduler: Any, monkeypatch: pytest.MonkeyPatch, **tokens: list[int]) -> dict[str, tuple[list[int], Any]]:
    """Tokens and end by request that are sent after a step in which the requests were given these tokens."""
    from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs

    step = [EngineCoreOutput(name, given) for name, given in tokens.items()]
    given = {0: EngineCoreOutputs(outputs=step)}
    planned = SimpleNamespace(scheduled_new_reqs=[], num_scheduled_tokens={"held": 1})
    monkeypatch.setattr(type(scheduler).__mro__[1], "update_from_output", lambda self, *_: given)
    outputs = scheduler.update_from_output(planned, "found")[0].outputs
    found = {output.request_id: (output.new_token_ids, output.finish_reason) for output in outputs}
    assert len(found) == len(outputs)
    return found


def test_a_pause_waits_until_what_was_sampled_before_it_is_sent(
    scheduler: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm.sampling_params import RequestOutputKind, SamplingParams

    asked = SamplingParams(output_kind=RequestOutputKind.FINAL_ONLY)
    scheduler.requests["held"] = SimpleNamespace(request_id="held", sampling_params=asked)
    assert sent(scheduler, monkeypatch, held=[5]) == {}
    assert scheduler.get_num_unfinished_requests() == 0
    pause(scheduler)
    assert scheduler.get_num_unfinished_requests() == 1
    assert sent(scheduler, monkeypatch) == {"held": ([5], None)}
    assert scheduler.get_num_unfinished_requests() == 0
    assert sent(scheduler, monkeypatch, held=[6]) == {"held": ([6], None)}


def proven_beside(scheduler: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proof whose step gave the requests "a" and "b" a token."""
    name = f"generate-tokens-{probe_ids(1, CONTROL)[0]}"
    pause(scheduler)
    add(scheduler, name.removeprefix("generate-tokens-"))
    scheduler.schedule()
    assert sent(scheduler, monkeypatch, **{"b": [7], name: [1], "a": [8]}) == {name: ([1], None)}
    del scheduler.requests[name]
    scheduler.did.clear()


def test_what_was_sampled_beside_a_proof_is_sent_when_the_pause_ends_before_anything_is_computed(
    scheduler: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    proven_beside(scheduler, monkeypatch)
    assert scheduler.get_num_unfinished_requests() == 0
    assert sent(scheduler, monkeypatch) == {}
    scheduler.set_pause_state(scheduler.states.UNPAUSED)
    assert scheduler.get_num_unfinished_requests() == 1
    assert planned(scheduler)[1] is False
    assert sent(scheduler, monkeypatch) == {"a": ([8], None), "b": ([7], None)}
    assert scheduler.get_num_unfinished_requests() == 0
    assert planned(scheduler)[1] is True
    assert sent(scheduler, monkeypatch, a=[9]) == {"a": ([9], None)}


def test_what_was_sampled_beside_a_proof_is_never_sent_after_another_pause(
    scheduler: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor what a step is still on its way with, as that of "c"; "b" ended with its token, and runs no more."""
    from vllm.v1.engine import FinishReason

    proven_beside(scheduler, monkeypatch)
    scheduler.running = [SimpleNamespace(request_id=name, client_index=0) for name in ("a", "c")]
    scheduler.set_pause_state(scheduler.states.PAUSED_ALL)
    assert scheduler.did == [["a", "b", "c"], "state"]
    assert scheduler.get_num_unfinished_requests() == 1
    assert sent(scheduler, monkeypatch) == {name: ([], FinishReason.ABORT) for name in "abc"}
    assert scheduler.get_num_unfinished_requests() == 0
    scheduler.set_pause_state(scheduler.states.UNPAUSED)
    assert sent(scheduler, monkeypatch) == {}
