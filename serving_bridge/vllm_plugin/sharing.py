"""Which of an engine's answers are in its next step while users are there; training's other answers are held.

A held answer keeps its place and its KV cache, and goes on at the token where it stopped. It gives both up where a user
would otherwise wait for them: vLLM itself lets whoever waits wait until something ends.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from vllm.v1.core.sched.interface import PauseState
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.engine import EngineCoreEventType
from vllm.v1.request import Request, RequestStatus

from serving_bridge.vllm_plugin.training_share import TrainingShare
from serving_bridge.vllm_plugin.user_delays import UserDelays

#: Steps in a row in which no user got on; then nothing is held for one step, so that whatever they wait for can end.
_FRUITLESS = 8
#: The block that stands for tokens outside a window.
_NULL = 0
_READY = (RequestStatus.RUNNING, RequestStatus.WAITING, RequestStatus.PREEMPTED)


class Sharing:
    """Decides for one scheduler of vLLM.

    Args:
      delays: of users' answers by training.
      users_below: requests whose priority is lower are users'; the others give way to them.
      clock: seconds, on which vLLM's own events are too.
      wall: seconds, on which vLLM's server notes when a request came.
    """

    def __init__(
        self,
        scheduler: Any,
        share: TrainingShare,
        delays: UserDelays,
        users_below: int,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._scheduler, self._share, self._delays = scheduler, share, delays
        self._users_below, self._clock, self._wall = users_below, clock, wall
        self._users: dict[str, Request] = {}
        self._fruitless = 0
        self._users_s = float("-inf")  # when users were there last
        self._planned_s = self._took_s = float("-inf")  # when a step was planned last, and when one ended last
        self._ended_s: float | None = None  # when the last step ended, if users were in it
        self.num_held = 0

    def added(self, request: Request) -> None:
        """Takes note of a new request."""
        if request.priority < self._users_below:
            self._users[request.request_id] = request
            self._delays.begin(request.request_id, self._clock() - (self._wall() - request.arrival_time))

    @contextmanager
    def step(self, beside: int = 0) -> Iterator[None]:
        """Within it, vLLM's `schedule` plans the next step.

        Args:
          beside: further requests, which the step has in any case.
        """
        scheduler, self.num_held = self._scheduler, 0
        self._planned_s = self._clock()
        self._users = {name: request for name, request in self._users.items() if name in scheduler.requests}
        self._delays.keep(self._users)
        users = [request for request in self._users.values() if request.status in _READY]
        if not users or scheduler.pause_state != PauseState.UNPAUSED or self._fruitless >= _FRUITLESS:
            self._fruitless = 0
            yield
            return
        self._users_s = self._planned_s
        waiting = [request for request in users if request.status != RequestStatus.RUNNING]
        training = self._training()
        self._make_room(waiting, training)
        most = self._most()
        for request in training[most:]:
            request.next_decode_eligible_step = scheduler.current_step + 2  # `schedule` begins with the next step
        self.num_held = max(0, len(training) - most)
        usual = scheduler.max_num_active_reqs
        places = len(scheduler.running) + len(waiting) + max(0, most - len(training)) + beside
        scheduler.max_num_active_reqs = min(usual, places)
        try:
            yield
        finally:
            scheduler.max_num_active_reqs = usual

    def users_kv_usage(self) -> float:
        """Share of the KV cache that users hold, 0 to 1: what training holds, they can have."""
        manager = self._scheduler.kv_cache_manager
        total = manager.block_pool.num_gpu_blocks - 1  # without the null block
        held = {block for name in self._users for group in manager.get_block_ids(name) for block in group} - {_NULL}
        return len(held) / total if total > 0 else 0.0

    def _most(self) -> int:
        """Answers of training that the next step may have."""
        most, share = self._share.next_step(), self._share
        # Users who got on in none of the last steps may wait for what training's end gives.
        return most if self._fruitless or self._delays.allow(share.alone_s, share.extra_s) else 0

    def took(self, step: SchedulerOutput) -> None:
        """Takes over what was in a step that has just ended, before vLLM does."""
        for new in step.scheduled_new_reqs:
            self._begin_queue_time_anew(new.req_id)
        now_s, names = self._clock(), step.num_scheduled_tokens
        users = [self._users[name] for name in names if name in self._users]
        training = len(names) - len(users)
        # The first step of a user's answer reads its prompt, and takes as long as that is.
        is_alike = all(user.num_output_tokens for user in users)
        if users and is_alike and self._ended_s is not None:
            self._share.took(now_s - self._ended_s, training)
        began_s, self._took_s = max(self._took_s, self._planned_s), now_s
        if names:
            self._delays.took(
                began_s, now_s, self._training_share(now_s - began_s, training, is_alike=is_alike, users=bool(users))
            )
        self._fruitless = 0 if users else self._fruitless + bool(self.num_held)
        unpaused = self._scheduler.pause_state == PauseState.UNPAUSED
        self._ended_s = now_s if users and unpaused else None

    def _training_share(self, seconds: float, training: int, *, is_alike: bool, users: bool) -> float:
        """Of a step's time, as far as training made it longer."""
        if not (users and training):
            return float(bool(training))
        extra_s = seconds - self._share.alone_s if is_alike else self._share.extra_s
        return min(max(extra_s / seconds, 0.0), 1.0) if seconds > 0 and self._share.alone_s else 0.0

    def _training(self) -> list[Request]:
        """What runs and is no user's, from what is held last to what is held first."""
        found = [request for request in self._scheduler.running if request.priority >= self._users_below]
        return sorted(found, key=lambda request: (request.priority, request.arrival_time))

    def _make_room(self, waiting: list[Request], training: list[Request]) -> None:
        """Preempts training's latest answers as long as users wait for their places or their KV blocks."""
        scheduler = self._scheduler
        pool, size = scheduler.kv_cache_manager.block_pool, scheduler.cache_config.block_size
        blocks = sum(request.num_tokens // size + 1 for request in waiting)
        while waiting and training:
            free = scheduler.max_num_active_reqs - len(scheduler.running)
            if free >= len(waiting) and pool.get_num_free_blocks() >= blocks:
                return
            if not scheduler._request_blocks_can_be_freed(training[-1]):
                return
            request = training.pop()
            scheduler.running.remove(request)
            scheduler._preempt_request(request, self._clock())

    def _begin_queue_time_anew(self, name: str) -> None:
        """Takes from training's time in the queue what it waited for users: by that time the gateway sheds users."""
        request = self._scheduler.requests.get(name)
        if request is not None and request.priority >= self._users_below:
            for event in request.events:
                if event.type == EngineCoreEventType.QUEUED:
                    event.timestamp = max(event.timestamp, self._users_s)
