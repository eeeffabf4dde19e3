"""The fake engine's core: requests that wait and run, what a pause does to them, and their tokens, one by one."""

from __future__ import annotations

import asyncio
import bisect
import itertools
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from tools.testing.fake_vllm.answers import Generation
from tools.testing.fake_vllm.weights import Worker

#: name of the weights that a server starts with
_UNNAMED = "default"


class EngineDiedError(Exception):
    """The engine's process ends here, in the middle of what it was doing."""


@dataclass
class Disturbance:
    """What an engine does wrong now.

    Attributes:
      hangs: samples nothing and carries out no control route, while /health answers as before.
      slowness: factor on the time that each token takes.
      garbage: generations that are answered with bytes that are not JSON, counted down.
      failures: answers of 500, by route, counted down.
      aborts: generations that end with finish reason "abort" after their first token, counted down.
      dies_after_tokens: ends once it has sampled so many more tokens.
    """

    hangs: bool = False
    slowness: float = 1.0
    garbage: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    aborts: int = 0
    dies_after_tokens: int | None = None

    def shall_fail(self, route: str) -> bool:
        """Whether what is asked of a route now fails on purpose; counts down."""
        if self.failures[route] <= 0:
            return False
        self.failures[route] -= 1
        return True


@dataclass(frozen=True)
class EngineSettings:
    """What a server is started with, as far as answers depend on it.

    Attributes:
      token_s: seconds that one more token of each row takes.
      control_s: seconds that a pause and an update take.
    """

    max_model_len: int
    max_num_seqs: int = 256
    token_s: float = 0.0
    control_s: float = 0.0


class EngineCore:
    """Samples requests, in the order of their priority, as far as pauses and `max_num_seqs` let it.

    Args:
      on_sample: told of (version name, number of tokens) whenever tokens are sampled that no probe asked for.

    Attributes:
      version_name: that tokens are marked with.
      pauses: how many there were.
      totals: counters, by name, since the start.
    """

    def __init__(self, worker: Worker, settings: EngineSettings, *, on_sample: Callable[[str, int], None]) -> None:
        self.disturbance = Disturbance()
        self.version_name = _UNNAMED
        self.pauses = 0
        self.totals: Counter[str] = Counter()
        self._worker, self._settings, self._on_sample = worker, settings, on_sample
        self._paused: str | None = None
        self._clears_cache = False
        self._numbers = itertools.count()
        self._waiting: list[tuple[int, int, Generation]] = []
        self._running: dict[str, Generation] = {}
        self._probes: dict[str, tuple[str, int]] = {}
        self._changed = asyncio.Event()

    @property
    def is_paused(self) -> bool:
        return self._paused is not None

    @property
    def requests(self) -> list[Generation]:
        """Those that run, then those that wait."""
        return [*self._running.values(), *(request for _, _, request in self._waiting)]

    def next_number(self) -> int:
        """Tells requests apart that brought no id, and those of one priority by their order."""
        return next(self._numbers)

    def pause(self, mode: str, *, clears_cache: bool) -> None:
        """A second pause is a new one: probes that came before it don't run in it."""
        self._paused, self.pauses, self._clears_cache = mode, self.pauses + 1, clears_cache
        self._probes.clear()

    def resume(self) -> None:
        self._paused = None
        self.notice()

    def notice(self) -> None:
        """Has everything that waits look again: something was changed from outside."""
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def abort_everything(self) -> int:
        """Ends every request in flight; returns how many."""
        requests = self.requests
        for request in requests:
            request.aborted = True
        self.notice()
        return len(requests)

    def num_rows(self) -> tuple[int, int]:
        """Answers that (run, wait), as vLLM counts them."""
        running = sum(request.num_rows for request in self._running.values())
        waiting = sum(request.num_rows for _, _, request in self._waiting)
        if self.is_paused:
            running, waiting = 0, running + waiting  # a pause that clears the caches preempts what runs
        return running, waiting

    async def complete(
        self, request: Generation, *, priority: int, probe: tuple[str, int] | None, wants_prompt: bool
    ) -> list[float] | None:
        """Samples a request to its end; a cancellation ends it without a trace.

        Args:
          probe: batch that the request is of, if it is a probe.

        Returns:
          log-probs of the prompt's own tokens, if wanted and the request was not aborted before it ran.

        Raises:
          EngineDiedError: the process ends; there is no answer.
        """
        if probe is not None and self.is_paused:
            self._probes[request.request_id] = probe
            self.notice()
        entry = (priority, self.next_number(), request)
        bisect.insort(self._waiting, entry, key=lambda waiting: waiting[:2])
        prompt_logprobs = None
        try:
            await self.until(lambda: request.aborted or self._is_next(entry))
            self._waiting.remove(entry)
            self._running[request.request_id] = request
            self.notice()
            if wants_prompt and not request.aborted:
                prompt_logprobs = self._worker.weights.prompt_logprobs(request.prompt)
            self.totals["prompt_tokens"] += len(request.prompt)
            await self._sample_all(request, is_probe=probe is not None)
        finally:
            if entry in self._waiting:
                self._waiting.remove(entry)
            self._running.pop(request.request_id, None)
            self.notice()
        for reason in request.finished:
            self.totals[str(reason)] += 1
        return prompt_logprobs

    async def until(self, holds: Callable[[], bool]) -> None:
        """Waits as long as the client does: it closes the connection when its own bound is reached."""
        while not holds():
            await self._changed.wait()

    def _is_next(self, entry: tuple[int, int, Generation]) -> bool:
        request = entry[2]
        if not self._may_run(request):
            return False
        if request.request_id in self._probes:
            return True  # those that run were preempted by the pause
        running = sum(other.num_rows for other in self._running.values())
        has_room = running == 0 or running + request.num_rows <= self._settings.max_num_seqs
        return self._waiting[0] is entry and has_room

    def _may_run(self, request: Generation) -> bool:
        """Whether a step may include the request now: while paused only complete batches of probes run."""
        if self.disturbance.hangs:
            return False
        if self._paused != "keep":
            return self._paused is None or request.arrived_in_pause < self.pauses
        batch = self._probes.get(request.request_id)
        if batch is None or not self._clears_cache:
            return False
        return sum(other == batch for other in self._probes.values()) >= batch[1]

    async def _sample_all(self, request: Generation, *, is_probe: bool) -> None:
        while None in request.finished and not request.aborted:
            await asyncio.sleep(self._settings.token_s * self.disturbance.slowness)
            await self.until(lambda: request.aborted or self._may_run(request))
            if not request.aborted:
                self._step(request, is_probe=is_probe)
        request.end()

    def _step(self, request: Generation, *, is_probe: bool) -> None:
        """One more token of every row that has not ended."""
        open_rows = request.open_rows
        sampled = self._worker.weights.sample(
            [request.prompt + request.rows[index] for index in open_rows],
            request.temperature,
            [request.draws[index] for index in open_rows],
        )
        for index, token, logprob in zip(open_rows, sampled.tokens, sampled.logprobs, strict=True):
            request.add(index, token, logprob, self.version_name)
        self.totals["tokens"] += len(open_rows)
        if is_probe:
            return
        self._on_sample(self.version_name, len(open_rows))
        disturbance = self.disturbance
        if disturbance.aborts > 0:
            disturbance.aborts -= 1
            request.aborted = True
        if disturbance.dies_after_tokens is not None:
            disturbance.dies_after_tokens -= len(open_rows)
            if disturbance.dies_after_tokens <= 0:
                raise EngineDiedError
