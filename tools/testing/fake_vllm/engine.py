"""A fake vLLM replica: the routes, the order of events and the traps of the real one, over weights that really sample.

As of vLLM 0.32 with Weir's plugin. Not modelled: streams, prefix caches (a pause with cleared caches is the only one
that keeps answers), text, chat, LoRA, several workers or ranks.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import msgspec

from serving_bridge.access import ROUND_ROUTE, SERVE_ROUTE, SWAP_ROUTE, Fence, Refused, batch_of
from tools.testing.fake_vllm.answers import Answer, Generation, answer, json_answer, metrics, together
from tools.testing.fake_vllm.core import Disturbance, EngineCore, EngineDiedError, EngineSettings
from tools.testing.fake_vllm.rounds import RoundRoutes
from tools.testing.fake_vllm.weights import Worker

#: routes that answer though the engine hangs
_WITHOUT_ENGINE = (ROUND_ROUTE, "/metrics", "/is_paused", "/weight_info")


class _RefusedError(Exception):
    """A request that is answered with an error of the client's."""


class Engine:
    """Answers requests as one replica does. All time is the running loop's.

    Args:
      draws: randomness of requests without a seed.
      control_token: seals the ids of probes.
      on_sample: told of (version name, number of tokens) whenever tokens are sampled that no probe asked for.
      on_name: told of each name that its weights get.
    """

    def __init__(
        self,
        worker: Worker,
        settings: EngineSettings,
        *,
        draws: random.Random,
        control_token: str = "",
        on_sample: Callable[[str, int], None] = lambda name, count: None,
        on_name: Callable[[str], None] = lambda name: None,
    ) -> None:
        self.worker = worker
        self.settings = settings
        self.draining = False
        self._core = EngineCore(worker, settings, on_sample=on_sample)
        self._draws, self._control_token = draws, control_token
        self._fence = Fence()
        self._rounds = RoundRoutes(
            worker,
            self._core,
            self._generate_all,
            control_s=settings.control_s,
            control_token=control_token,
            on_name=on_name,
        )

    @property
    def disturbance(self) -> Disturbance:
        """What it does wrong now; call `notice` after a change."""
        return self._core.disturbance

    @disturbance.setter
    def disturbance(self, disturbance: Disturbance) -> None:
        self._core.disturbance = disturbance

    @property
    def num_requests(self) -> int:
        return len(self._core.requests)

    async def handle(
        self,
        method: str,
        path: str,
        body: bytes | None,
        params: Mapping[str, str],
        fencing_token: int | None = None,
    ) -> Answer:
        """One HTTP request: (status, payload). A cancellation stands for a client that closed the connection.

        Args:
          fencing_token: of the weight round that asks.

        Raises:
          EngineDiedError: the process ends; there is no answer.
        """
        if path == "/health":
            return 200, b""
        route = self._routes(lambda: self._fence.check(path, None, fencing_token)).get((method, path))
        if route is None:
            return _error(404, f"{method} {path}: no such route")
        if self.disturbance.shall_fail(path):
            return _error(500, f"{path} failed on purpose")
        await self._core.until(lambda: not self.disturbance.hangs or path in _WITHOUT_ENGINE)
        try:
            decoded = msgspec.json.decode(body) if body else {}
            if not isinstance(decoded, dict):
                raise _RefusedError("the body must be a JSON object")
            call = str(decoded.get("method")) if path == "/collective_rpc" else None
            self._fence.check(path, call, fencing_token)
            status, payload = await route(decoded, params)
            self._fence.answered(call, fencing_token, status)
            return status, payload
        except Refused as refused:
            return refused.status, refused.payload()
        except (_RefusedError, msgspec.DecodeError) as error:
            return _error(400, str(error))
        except EngineDiedError:
            raise
        except Exception as error:  # noqa: BLE001 - as vLLM's own handler of last resort
            return _error(500, f"{type(error).__name__}: {error}")

    def notice(self) -> None:
        """Has everything that waits look again: the disturbance was changed from outside."""
        self._core.notice()

    def abort_everything(self) -> int:
        """Ends every request in flight; returns how many."""
        return self._core.abort_everything()

    def _routes(
        self, check: Callable[[], None]
    ) -> dict[tuple[str, str], Callable[[dict[str, Any], Mapping[str, str]], Any]]:
        """By (method, path).

        Args:
          check: raises once another round than that of the request is to be obeyed.
        """
        return {
            ("POST", SWAP_ROUTE): partial(self._rounds.swap, check),
            ("POST", SERVE_ROUTE): partial(self._rounds.serve, check),
            ("POST", "/inference/v1/generate"): self._generate,
            ("POST", ROUND_ROUTE): self._begin_round,
            ("POST", "/pause"): self._pause,
            ("POST", "/resume"): self._resume,
            ("GET", "/is_paused"): self._say_paused,
            ("POST", "/abort_requests"): self._abort,
            ("POST", "/start_weight_update"): self._rounds.start_update,
            ("POST", "/update_weights"): self._rounds.update,
            ("POST", "/update_weight_version"): self._rounds.name_version,
            ("GET", "/weight_info"): self._say_version,
            ("POST", "/collective_rpc"): self._call_worker,
            ("GET", "/metrics"): self._metrics,
        }

    # Control.

    async def _begin_round(self, body: dict[str, Any], params: Mapping[str, str]) -> Answer:
        return json_answer({"fencing_token": self._fence.next_token()})

    async def _pause(self, body: dict[str, Any], params: Mapping[str, str]) -> Answer:
        mode = params.get("mode", "abort")
        if mode not in ("abort", "wait", "keep"):
            raise _RefusedError(f"pause mode {mode!r}, expected abort, wait or keep")
        self._core.pause(mode, clears_cache=params.get("clear_cache") != "false")
        if mode == "abort":
            self.abort_everything()
        await asyncio.sleep(self.settings.control_s)
        return json_answer({"status": "paused"})

    async def _resume(self, body: dict[str, Any], params: Mapping[str, str]) -> Answer:
        self._core.resume()
        return json_answer({"status": "resumed"})

    async def _say_paused(self, body: dict[str, Any], params: Mapping[str, str]) -> Answer:
        return json_answer({"is_paused": self._core.is_paused})

    async def _abort(self, body: dict[str, Any], params: Mapping[str, str]) -> Answer:
        wanted = body.get("request_ids")
        if not wanted:
            return json_answer({"status": "aborted", "aborted": self.abort_everything()})
        for request in self._core.requests:
            request.aborted |= request.request_id in wanted
        self.notice()
        return json_answer({"status": "aborted", "aborted": len(wanted)})  # also for ids that nobody has

    async def _say_version(self, body: dict[str, Any], params: Mapping[str, str]) -> Answer:
        return json_answer({"weight_version": self._core.version_name})

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
        return json_answer({"results": [status]})

    async def _metrics(self, body: dict[str, Any], params: Mapping[str, str]) -> Answer:
        running, waiting = self._core.num_rows()
        return 200, metrics(running, waiting, self.settings.max_num_seqs, self._core.totals).encode()

    # Sampling.

    async def _generate(self, body: dict[str, Any], params: Mapping[str, str]) -> Answer:
        if (prompts := body.pop("prompts", None)) is not None:
            return await self._generate_each(prompts, body)
        parameters = body.get("sampling_params", {})
        request = self._request(body, parameters)
        if self.draining:
            request.end()
            return 200, answer(request, None)
        probe = batch_of(request.request_id, self._control_token) if request.max_tokens == 1 else None
        prompt_logprobs = await self._core.complete(
            request,
            priority=int(body.get("priority", 0)),
            probe=probe,
            wants_prompt=parameters.get("prompt_logprobs") is not None,
        )
        if probe is None and self.disturbance.garbage > 0:
            self.disturbance.garbage -= 1
            return 200, b'{"choices": [{"index": 0, "finish_reason": "stop", "token_ids": [7,'
        return 200, answer(request, prompt_logprobs)

    async def _generate_each(self, prompts: list[Any], body: dict[str, Any]) -> Answer:
        """Each prompt as by a request of its own; one that fails fails all."""
        return 200, await self._generate_all([{**body, "token_ids": prompt} for prompt in prompts])

    async def _generate_all(self, asked: Sequence[dict[str, Any]]) -> bytes:
        tasks = [asyncio.ensure_future(self._generate(one, {})) for one in asked]
        try:
            return together([payload for _, payload in await asyncio.gather(*tasks)])
        finally:
            for task in tasks:
                task.cancel()

    def _request(self, body: dict[str, Any], parameters: dict[str, Any]) -> Generation:
        prompt, vocabulary = [int(token) for token in body["token_ids"]], self.worker.weights.vocab_size
        if not prompt or any(not 0 <= token < vocabulary for token in prompt):
            raise _RefusedError(f"token ids must be of the vocabulary of {vocabulary}")
        room = self.settings.max_model_len - len(prompt)
        if room < 1:
            raise _RefusedError(f"the prompt of {len(prompt)} tokens leaves no room in {self.settings.max_model_len}")
        number, seed, rows = self._core.next_number(), parameters.get("seed"), int(parameters.get("n", 1))
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
            arrived_in_pause=self._core.pauses,
        )


def _error(status: int, message: str) -> Answer:
    return status, msgspec.json.encode({"error": {"message": message, "type": "fake", "code": status}})
