"""vLLM's scheduler, except that probes sent to a paused engine run, and that nothing else leaves it meanwhile.

Given to vLLM by `--scheduler-cls`. A stock paused engine schedules nothing, so new weights could only be proven after
the first tokens sampled from them had been sent. Tokens of answers that are only asked for whole wait in the engine.
While users are there, training has a share of each step only (`sharing`).
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from vllm.config import VllmConfig
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.interface import PauseState
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import EngineCoreOutputs
from vllm.v1.engine.core import EngineCore
from vllm.v1.metrics.stats import SchedulerStats
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus

from serving_bridge.access import CONTROL_TOKEN, batch_of
from serving_bridge.vllm_plugin import TRAINING_SLOWDOWN, USERS_BELOW
from serving_bridge.vllm_plugin.held_outputs import HeldOutputs
from serving_bridge.vllm_plugin.next_slots import keep_slots_inside_blocks
from serving_bridge.vllm_plugin.sharing import Sharing
from serving_bridge.vllm_plugin.training_share import TrainingShare
from serving_bridge.vllm_plugin.unproven_outputs import UnprovenOutputs
from serving_bridge.vllm_plugin.user_delays import UserDelays

#: most tokens of held requests in a step with probes: long ones would put off the verdict, and gain little
_BESIDE_TOKENS = 2048


def make_scheduler(*, vllm_config: VllmConfig, **arguments: Any) -> ProbingScheduler:
    """What `--scheduler-cls` names: vLLM calls it as it would call a class."""
    EngineCore.users_kv_usage = _users_kv_usage  # which the server can ask for by its name
    chosen = AsyncProbingScheduler if vllm_config.scheduler_config.async_scheduling else ProbingScheduler
    return chosen(vllm_config=vllm_config, **arguments)


def _users_kv_usage(engine: EngineCore) -> float:
    return engine.scheduler.users_kv_usage()


class ProbingScheduler(Scheduler):
    """Runs, while paused in mode "keep" with the caches cleared, the probes that came after the pause.

    Probes of one batch run in one step, when all of them have come. Held requests are in the same step, since every
    step lengthens the pause: the clearing preempted them, and their KV cache has to be computed anew in any case. What
    they are given is kept until the pause ends. If another pause begins first, weights may change, and they are
    aborted.

    Probes go first, so they find all KV blocks free. A pause that keeps the caches lets no probe run: it would compete
    for the held requests' blocks.

    Raises:
      RuntimeError: the environment has no control token, so probes could not be told from other requests.
    """

    _pause_state: PauseState
    max_num_scheduled_tokens: int

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        keep_slots_inside_blocks(self.kv_cache_manager)
        self._probes: dict[str, tuple[str, int]] = {}  # request id -> its batch
        self._held, self._unproven = HeldOutputs(), UnprovenOutputs()
        self._is_proving = False  # from the first step with probes on, until the pause ends or another one begins
        slowdown = float(os.environ[TRAINING_SLOWDOWN])
        share = TrainingShare(slowdown, self.max_num_active_reqs)
        self._sharing = Sharing(self, share, UserDelays(slowdown), int(os.environ[USERS_BELOW]))
        self._control_token = os.environ.get(CONTROL_TOKEN, "")
        if not self._control_token:
            raise RuntimeError(f"{CONTROL_TOKEN} is not set: serving_bridge.fleet.replica starts servers with it")

    def set_pause_state(self, pause_state: PauseState) -> None:
        # Probes from before must not keep the engine busy: a pause is complete when the engine is idle.
        if pause_state != PauseState.UNPAUSED:
            self._give_up_unproven()
        elif self._pause_state == PauseState.PAUSED_ALL and not self._is_proving:
            # Raises where it can't be cleared: the engine then stays paused.
            self.reset_prefix_cache(reset_running_requests=True)
        self._is_proving = False
        self._probes.clear()
        super().set_pause_state(pause_state)

    def add_request(self, request: Request) -> None:
        super().add_request(request)
        # A probe only asks for a prompt's log-probs; the one token that vLLM insists on goes to the prober.
        if self.pause_state == PauseState.PAUSED_ALL and request.max_tokens == 1:
            batch = batch_of(request.request_id, self._control_token)
            if batch is not None:
                self._probes[request.request_id] = batch
                return
        self._sharing.added(request)

    def get_num_unfinished_requests(self) -> int:
        """What there is to do; vLLM's engine steps only while this is not 0."""
        number = int(super().get_num_unfinished_requests()) + len(self._probes_to_run())
        # A pause waits until there is nothing to do: what was sampled before it is sent under the version of then.
        return number or int(self._may_release or (self.pause_state == PauseState.PAUSED_ALL and bool(self._held)))

    def schedule(self, throttle_prefills: bool = False) -> SchedulerOutput:
        probes = self._probes_to_run()
        if self._may_release:
            state = PauseState.PAUSED_ALL  # an empty step, so that nothing is computed before it is sent
        elif probes:
            state, self._is_proving = PauseState.UNPAUSED, True
        else:
            state = self._pause_state
        with self._as_if(state, probes), self._sharing.step(beside=len(probes)):
            return super().schedule(throttle_prefills)

    def update_from_output(
        self, scheduler_output: SchedulerOutput, model_runner_output: ModelRunnerOutput
    ) -> dict[int, EngineCoreOutputs]:
        if not self._is_proving:  # how long a proof takes says nothing of training
            self._sharing.took(scheduler_output)
        outputs = super().update_from_output(scheduler_output, model_runner_output)
        if self._is_proving:
            self._unproven.keep(outputs, self._probes)
        outputs = self._held.pass_on(outputs, self.requests, all_of_it=self.pause_state != PauseState.UNPAUSED)
        if self._may_release:
            self._unproven.release(outputs)
        return outputs

    def make_stats(self, *args: Any, **kwargs: Any) -> SchedulerStats | None:
        stats = super().make_stats(*args, **kwargs)
        if stats is not None:
            stats.num_running_reqs -= self._sharing.num_held
            stats.num_skipped_waiting_reqs += self._sharing.num_held
        return stats

    def users_kv_usage(self) -> float:
        """As `Sharing.users_kv_usage`."""
        return self._sharing.users_kv_usage()

    def _give_up_unproven(self) -> None:
        """Ends what was in a step with probes, before weights can change; a step may still be on its way."""
        if self._is_proving:
            beside = [request for request in self.running if request.request_id not in self._probes]
            names = self._unproven.give_up({request.request_id: request.client_index for request in beside})
            self.finish_requests(names, RequestStatus.FINISHED_ABORTED)

    @property
    def _may_release(self) -> bool:
        """Whether something is kept that may be sent: its weights were proven, or it was given up."""
        return bool(self._unproven) and not self._is_proving

    def _probes_to_run(self) -> frozenset[str]:
        """Ids of the probes that are unfinished and whose batch has come whole."""
        if not self._probes:
            return frozenset()
        complete = {batch for batch, count in Counter(self._probes.values()).items() if count >= batch[1]}
        ids = {name for name, batch in self._probes.items() if batch in complete and name in self.requests}
        if not self._is_proving and any(request.request_id not in ids for request in self.running):
            return frozenset()
        return frozenset(ids)

    @contextmanager
    def _as_if(self, state: PauseState, probes: frozenset[str]) -> Iterator[None]:
        """Shows vLLM's `schedule` another state of the engine, and room for few tokens besides those of probes."""
        paused, tokens = self._pause_state, self.max_num_scheduled_tokens
        self._pause_state = state
        if probes:
            own = sum(self.requests[name].num_tokens for name in probes)
            self.max_num_scheduled_tokens = min(tokens, own + _BESIDE_TOKENS)
        try:
            yield
        finally:
            self._pause_state, self.max_num_scheduled_tokens = paused, tokens


class AsyncProbingScheduler(ProbingScheduler, AsyncScheduler):
    """The same over the scheduler that plans a step while the one before still runs."""
