"""A fake vLLM replica: the routes, the order of events and the traps of the real one, over weights that really sample.

As of vLLM 0.32 with Weir's plugin. Not modelled: streams, prefix caches (a pause with cleared caches is the only one
that keeps answers), text, chat, LoRA, several workers or ranks.
"""

from __future__ import annotations

import asyncio
import bisect
import itertools
import random
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from serving_bridge.access import batch_of
from tools.testing.fake_vllm.answers import Generation, answer
from tools.testing.fake_vllm.weights import Worker

#: name of the weights that a server starts with
_UNNAMED = "default"

Answer = tuple[int, bytes]


class EngineDiedError(Exception):
    """The engine's process ends here, in the middle of what it was doing."""


class _RefusedError(Exception):
    """A request that is answered with an error of the client's."""


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


class Engine:
    """Answers requests as one replica does. All time is the running loop's.

    Args:
      draws: randomness of requests without a seed.
      control_token: seals the ids of probes.
      on_sample: told of (version name, number of tokens) whenever tokens are sampled that no probe asked for.
    """

    def __init__(
        self,
        worker: Worker,
        settings: EngineSettings,
        *,
        draws: random.Random,
        control_token: str = "",
        on_sample: Callable[[str, int], None] = lambda name, count: None,
    ) -> None:
        self.worker = worker
        self.settings = settings
        self.disturbance = Disturbance()
        self.version_name = _UNNAMED
        self.draining = False
        self._draws, self._on_sample, self._control_token = draws, on_sample, control_token
        self._paused: str | None = None
        self._pauses = 0
        self._clears_cache = False
        self._session_open = False
        self._numbers = itertools.count()
        self._waiting: list[tuple[int, int, Generation]] = []
        self._running: dict[str, Generation] = {}
        self._probes: dict[str, tuple[str, int]] = {}
        self._changed = asyncio.Event()
        self._totals: Counter[str] = Counter()

    @property
    def is_paused(self) -> bool:
        return self._paused is not None

    @property
    def num_requests(self) -> int:
        return len(self._running) + len(self._waiting)

    async def handle(self, method: str, path: str, body: bytes | None, params: Mapping[str, str]) -> Answer:
        """One HTTP request: (status, payload). A cancellation stands for a client that closed the connection.

        Raises:
          EngineDiedError: the process ends; there is no answer.
        """
        if path == "/health":
            return 200, b""
        route = self._routes().get((method, path))
        if route is None:
            return _error(404, f"{method} {path}: no such route")
        if self.disturbance.failures[path] > 0:
            self.disturbance.failures[path] -= 1
            return _error(500, f"{path} failed on purpose")
        await self._until(lambda: not self.disturbance.hangs or path in ("/metrics", "/is_paused", "/weight_info"))
        try:
            decoded = msgspec.json.decode(body) if body else {}
            if not isinstance(decoded, dict):
                raise _RefusedError("the body must be a JSON object")
            return await route(decoded, params)
        except (_RefusedError, msgspec.DecodeError) as error:
            return _error(400, str(error))
        except EngineDiedError:
            raise
        except Exception as error:  # noqa: BLE001 - as vLLM's own handler of last resort
            return _error(500, f"{type(error).__name__}: {error}")

    def notice(self) -> None:
        """Has everything that waits look again: the disturbance was changed from outside."""
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def abort_everything(self) -> int:
        """Ends every request in flight; returns how many."""
        requests = [*self._running.values(), *(request for _, _, request in self._waiting)]
        for request in requests:
            request.aborted = True
        self.notice()
        return len(requests)

    def _routes(self) -> dict[tuple[str, str], Callable[[dict[str, Any], Mapping[str, str]], Any]]:
        return {
            ("POST", "/inference/v1/generate"): self._generate,
            ("POST", "/pause"): self._pause,
            ("POST", "/resume"): self._resume,
            ("GET", "/is_paused"): self._say_paused,
            ("POST", "/abort_requests"): self._abort,
            ("POST", "/start_weight_update"): self._start_update,
            ("POST", "/update_weights"): self._update,
            ("POST", "/finish_weight_update"): self._finish_update,
            ("POST", "/update_weight_version"): self._name_version,
            ("GET", "/weight_info"): self._say_version,
            ("POST", "/collective_rpc"): self._call_worker,
            ("GET", "/metrics"): self._metrics,
        }

    # Control.

    async def _pause(self, body: dict[str, Any], params: Mapping[str, str]) -> Answer:
        mode = params.get("mode", "abort")
        if mode not in ("abort", "wait", "keep"):
            raise _RefusedError(f"pause mode {mode!r}, expected abort, wait or keep")
        # A second pause is a new one: probes that came before it don't run in it.
        self._paused, self._pauses, self._clears_cache = mode, self._pauses + 1, params.get("clear_cache") != "false"
        self._probes.clear()
        if mode == "abort":
            self.abort_everything()
        await asyncio.sleep(self.settings.control_s)
        return _json({"status": "paused"})

    async def _resume(self, body: dict[str, Any], params: Mapping[str, str]) -> Answer:
        self._paused = None
        self.notice()
        return _json({"status": "resumed"})

    async def _say_paused(self, body: dict[str, Any], params: Mapping[str, str]) -> Answer:
        return _json({"is_paused": self.is_paused})

    async def _abort(self, body: dict[str, Any], params: Mapping[str, str]) -> Answer:
        wanted = body.get("request_ids")
        if not wanted:
            return _json({"status": "aborted", "aborted": self.abort_everything()})
        for request in [*self._running.values(), *(request for _, _, request in self._waiting)]:
            request.aborted |= request.request_id in wanted
        self.notice()
        return _json({"status": "aborted", "aborted": len(wanted)})  # also for ids that nobody has

    async def _start_update(self, body: dict[str, Any], params: Mapping[str, str]) -> Answer:
        if self._session_open:
            raise RuntimeError("start_weight_update called while a weight update is already active")
        self._session_open = True
        return _json({"message": "Weight update started"})

    async def _update(self, body: dict[str, Any], params: Mapping[str, str]) -> Answer:
        if not self._session_open:
            raise RuntimeError("start_weight_update must be called before update_weights")
        try:
            info = body["update_info"]
            await asyncio.sleep(self.settings.control_s)
            self.worker.update(int(info["version"]), str(info["content_sha256"]), str(info["round_id"]))
        except BaseException:
            self._session_open = False  # a failing update ends the session, a failing finish does not
            raise
        return _json({"message": "Weights updated"})

    async def _finish_update(self, body: dict[str, Any], params: Mapping[str, str]) -> Answer:
        if not self._session_open:
            raise RuntimeError("finish_weight_update called without a matching start_weight_update")
        self._session_open = False
        if body.get("weight_version") is not None:
            self.version_name = str(body["weight_version"])
        return _json({"message": "Weight update finished"})

    async def _name_version(self, body: dict[str, Any], params: Mapping[str, str]) -> Answer:
        self.version_name = str(body["new_version"])
        return _json({"success": True, "new_version": self.version_name})

    async def _say_version(self, body: dict[str, Any], params: Mapping[str, str]) -> Answer:
        return _json({"weight_version": self.version_name})

    async def _call_worker(self, body: dict[str, Any], params: Mapping[str, str]) -> Answer:
        methods: dict[str, Callable[..., dict[str, Any]]] = {
            "weir_stage": self.worker.weir_stage,
            "weir_status": self.worker.weir_status,
            "weir_release": self.worker.weir_release,
        }
        name = str(body.get("method"))
        if name not in methods:
            raise _RefusedError(f"method {name!r}, expected one of {sorted(methods)}")
        status: dict[str, Any] = methods[name](**body.get("kwargs", {}))
        return _json({"results": [status]})

    async def _metrics(self, body: dict[str, Any], params: Mapping[str, str]) -> Answer:
        running = sum(request.num_rows for request in self._running.values())
        waiting = sum(request.num_rows for _, _, request in self._waiting)
        if self.is_paused:
            running, waiting = 0, running + waiting  # a pause that clears the caches preempts what runs
        lines = [
            f'vllm:num_requests_running{{engine="0",model_name="policy"}} {float(running)}',
            f'vllm:num_requests_waiting{{engine="0",model_name="policy"}} {float(waiting)}',
            f'vllm:kv_cache_usage_perc{{engine="0",model_name="policy"}} {running / self.settings.max_num_seqs}',
            f'vllm:num_preemptions_total{{engine="0",model_name="policy"}} {float(self._totals["preemptions"])}',
            f'vllm:generation_tokens_total{{engine="0",model_name="policy"}} {float(self._totals["tokens"])}',
            f'vllm:prompt_tokens_total{{engine="0",model_name="policy"}} {float(self._totals["prompt_tokens"])}',
        ]
        for reason in ("stop", "length", "abort"):
            labels = f'{{engine="0",finished_reason="{reason}",model_name="policy"}}'
            lines.append(f"vllm:request_success_total{labels} {float(self._totals[reason])}")
        return 200, ("\n".join(lines) + "\n").encode()

    # Sampling.

    async def _generate(self, body: dict[str, Any], params: Mapping[str, str]) -> Answer:
        parameters = body.get("sampling_params", {})
        request = self._request(body, parameters)
        if self.draining:
            request.end()
            return _json(answer(request, None))
        wants_prompt = parameters.get("prompt_logprobs") is not None
        probe = batch_of(request.request_id, self._control_token) if request.max_tokens == 1 else None
        if probe is not None and self.is_paused:
            self._probes[request.request_id] = probe
            self.notice()
        entry = (int(body.get("priority", 0)), next(self._numbers), request)
        bisect.insort(self._waiting, entry, key=lambda waiting: waiting[:2])
        prompt_logprobs = None
        try:
            await self._until(lambda: request.aborted or self._is_next(entry))
            self._waiting.remove(entry)
            self._running[request.request_id] = request
            self.notice()
            if wants_prompt and not request.aborted:
                prompt_logprobs = self.worker.weights.prompt_logprobs(request.prompt)
            self._totals["prompt_tokens"] += len(request.prompt)
            await self._sample_all(request, is_probe=probe is not None)
        finally:
            if entry in self._waiting:
                self._waiting.remove(entry)
            self._running.pop(request.request_id, None)
            self.notice()
        for reason in request.finished:
            self._totals[str(reason)] += 1
        if probe is None and self.disturbance.garbage > 0:
            self.disturbance.garbage -= 1
            return 200, b'{"choices": [{"index": 0, "finish_reason": "stop", "token_ids": [7,'
        return _json(answer(request, prompt_logprobs))

    def _request(self, body: dict[str, Any], parameters: dict[str, Any]) -> Generation:
        prompt, vocabulary = [int(token) for token in body["token_ids"]], self.worker.weights.vocab_size
        if not prompt or any(not 0 <= token < vocabulary for token in prompt):
            raise _RefusedError(f"token ids must be of the vocabulary of {vocabulary}")
        room = self.settings.max_model_len - len(prompt)
        if room < 1:
            raise _RefusedError(f"the prompt of {len(prompt)} tokens leaves no room in {self.settings.max_model_len}")
        number, seed, rows = next(self._numbers), parameters.get("seed"), int(parameters.get("n", 1))
        draws = [self._draws] * rows
        if seed is not None:
            draws = [random.Random(f"{seed}-{index}") for index in range(rows)]
        return Generation(
            request_id=f"generate-tokens-{body.get('request_id', number)}",
            prompt=prompt,
            num_rows=rows,
            max_tokens=min(int(parameters.get("max_tokens", 16)), room),  # cut without a word, as vLLM does
            temperature=float(parameters.get("temperature", 1.0)),
            stop_ids=frozenset(parameters.get("stop_token_ids") or ()),
            draws=draws,
            arrived_in_pause=self._pauses,
        )

    def _is_next(self, entry: tuple[int, int, Generation]) -> bool:
        request = entry[2]
        if not self._may_run(request):
            return False
        if request.request_id in self._probes:
            return True  # those that run were preempted by the pause
        running = sum(other.num_rows for other in self._running.values())
        return self._waiting[0] is entry and (running == 0 or running + request.num_rows <= self.settings.max_num_seqs)

    def _may_run(self, request: Generation) -> bool:
        """Whether a step may include the request now: while paused only complete batches of probes run."""
        if self.disturbance.hangs:
            return False
        if self._paused != "keep":
            return self._paused is None or request.arrived_in_pause < self._pauses
        batch = self._probes.get(request.request_id)
        if batch is None or not self._clears_cache:
            return False
        return sum(other == batch for other in self._probes.values()) >= batch[1]

    async def _sample_all(self, request: Generation, *, is_probe: bool) -> None:
        while None in request.finished and not request.aborted:
            await asyncio.sleep(self.settings.token_s * self.disturbance.slowness)
            await self._until(lambda: request.aborted or self._may_run(request))
            if not request.aborted:
                self._step(request, is_probe=is_probe)
        request.end()

    def _step(self, request: Generation, *, is_probe: bool) -> None:
        """One more token of every row that has not ended."""
        open_rows = request.open_rows
        sampled = self.worker.weights.sample(
            [request.prompt + request.rows[index] for index in open_rows],
            request.temperature,
            [request.draws[index] for index in open_rows],
        )
        for index, token, logprob in zip(open_rows, sampled.tokens, sampled.logprobs, strict=True):
            request.add(index, token, logprob, self.version_name)
        self._totals["tokens"] += len(open_rows)
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

    async def _until(self, holds: Callable[[], bool]) -> None:
        """Waits as long as the client does: it closes the connection when its own bound is reached."""
        while not holds():
            await self._changed.wait()


def _json(content: dict[str, Any]) -> Answer:
    return 200, msgspec.json.encode(content)


def _error(status: int, message: str) -> Answer:
    return status, msgspec.json.encode({"error": {"message": message, "type": "fake", "code": status}})
