"""One vLLM replica over HTTP: token ids in, token ids with log-probs and policy versions out; its state.

Routes as of vLLM 0.32: `/inference/v1/generate`, packed as the plugin answers it, and the RL routes of
VLLM_SERVER_DEV_MODE=1. What changes a replica is in `control`.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, TypeVar

import msgspec
import numpy as np

from serving_bridge.access import probe_ids
from serving_bridge.settings import VLLM_PRIORITY
from serving_bridge.vllm.answers import (
    Aborted,
    Asked,
    Completion,
    Failed,
    Malformed,
    Rejected,
    ReplicaError,
    Unreachable,
    Unversioned,
    completions,
    prompt_logprobs,
    version_named,
)
from serving_bridge.vllm.control import RoundControl
from serving_bridge.vllm.transport import GENERATE, Session, Transport
from serving_bridge.vllm.worker_status import WorkerStatus, worker_status
from serving_bridge.vllm_plugin import USERS_KV_USAGE, PackedAnswer

__all__ = [
    "USERS_KV_USAGE",
    "Aborted",
    "Completion",
    "Failed",
    "Malformed",
    "Rejected",
    "ReplicaError",
    "Unreachable",
    "Unversioned",
    "VllmClient",
]

T = TypeVar("T")

#: In `VllmClient.metrics`: requests that wait though there is room, such as training's while users are there.
DEFERRED = 'vllm:num_requests_waiting_by_reason{reason="deferred"}'
_DEFERRED = re.compile(
    r'^vllm:num_requests_waiting_by_reason\{(?:[^}]*,)?reason="deferred"[^}]*\} ([-+.0-9a-zA-Z]+)$', re.MULTILINE
)
#: How often the time of a request that gives way to users may begin anew. Training gets about every ninth step.
_MOST_TIMES = 10
_LOOK_S = 5.0
_METRIC = re.compile(r"^((?:vllm:|weir_)[a-z0-9_]+)(?:\{[^}]*\})? ([-+.0-9a-zA-Z]+)$", re.MULTILINE)


class _Paused(msgspec.Struct):
    is_paused: bool


class _Weights(msgspec.Struct):
    weight_version: str


class VllmClient:
    """Requests to one replica. The aiohttp session is given and stays the caller's.

    Args:
      vocab_size: answers with token ids from here on are refused; None where it is not known.
      token: of this start of the server; the control token for control routes and probes.
    """

    def __init__(
        self,
        base_url: str,
        session: Session,
        *,
        control_timeout_s: float = 60.0,
        vocab_size: int | None = None,
        token: str = "",
    ) -> None:
        self.base_url = base_url.rstrip("/")
        self.token = token
        self._http = Transport(self.base_url, session, timeout_s=control_timeout_s, token=token)
        self._vocab_size = vocab_size
        self._answer = msgspec.msgpack.Decoder(PackedAnswer)
        self._answers = msgspec.msgpack.Decoder(list[PackedAnswer])

    @property
    def authorization(self) -> dict[str, str]:
        """The header that every request carries."""
        return self._http.authorization

    def control(self) -> RoundControl:
        """What a new round changes on the replica, or somebody who does what a round does."""
        return RoundControl(self._http)

    def probe_ids(self, count: int) -> list[str]:
        """Request ids of prompts whose log-probs a paused server computes together, once all have come."""
        return probe_ids(count, self.token)

    async def generate(
        self,
        token_ids: Sequence[int],
        *,
        n: int,
        max_tokens: int,
        stop_token_ids: Sequence[int],
        timeout_s: float,
        temperature: float = 1.0,
        greedy: bool = False,
        top_p: float = 1.0,
        seed: int | None = None,
        priority: int = 0,
        unfinished: bool = False,
    ) -> list[Completion]:
        """Samples `n` answers to one prompt.

        Args:
          token_ids: the prompt, used as it is.
          max_tokens: bound on each answer's length.
          stop_token_ids: an answer ends with the first of these (kept in the answer); nothing else ends it early.
          greedy: take the likeliest token each time; needs n=1.
          top_p: share of the probability that tokens are drawn from.
          seed: makes the answers repeatable; the n answers still differ.
          timeout_s: bound on the answer. It begins anew, at most nine times, where the replica holds answers that give
            way to users, if this one does (`VLLM_PRIORITY`).
          priority: lower goes first where the server is full.
          unfinished: take answers that were aborted as far as they came (finish reason "abort", maybe no token).

        Raises:
          Aborted, Unreachable, Failed, Unversioned: may be tried again.
          Rejected, Malformed: won't get better.
        """
        parameters = _sampling(n, max_tokens, 0.0 if greedy else temperature, stop_token_ids)
        if top_p < 1:
            parameters["top_p"] = top_p
        if seed is not None:
            parameters["seed"] = seed
        prompt = {"token_ids": list(token_ids)}
        answer = self._read(self._answer, await self._ask(prompt, parameters, timeout_s, priority))
        asked = Asked(n, max_tokens, frozenset(stop_token_ids), self._vocab_size, unfinished)
        return completions(answer, asked, self.base_url)

    async def generate_each(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_tokens: int,
        stop_token_ids: Sequence[int],
        timeout_s: float,
        temperature: float = 1.0,
        greedy: bool = False,
        priority: int = 0,
    ) -> list[Completion]:
        """Samples one answer to each prompt, in one request; arguments and errors are those of `generate`.

        They come together, when the longest has ended; one that fails fails all.
        """
        parameters = _sampling(1, max_tokens, 0.0 if greedy else temperature, stop_token_ids)
        body = {"prompts": [list(prompt) for prompt in prompts]}
        answers = self._read(self._answers, await self._ask(body, parameters, timeout_s, priority))
        if len(answers) != len(prompts):
            raise Malformed(f"{self.base_url} answered {len(answers)} of {len(prompts)} prompts")
        asked = Asked(1, max_tokens, frozenset(stop_token_ids), self._vocab_size)
        return [completion for answer in answers for completion in completions(answer, asked, self.base_url)]

    async def prompt_logprobs(
        self, token_ids: Sequence[int], *, timeout_s: float, priority: int = 0, request_id: str | None = None
    ) -> np.ndarray:
        """Log-probs of a prompt's own tokens under the current weights; a paused server answers these, and only these.

        Args:
          request_id: one of `probe_ids`, to be computed in one step with the others; alone by default.

        Returns:
          float32[T-1], nats, temperature 1: entry t is log p(tokens[t+1] | tokens[:t+1]).
        """
        parameters = {"max_tokens": 1, "temperature": 0.0, "prompt_logprobs": 0, "detokenize": False}
        (alone,) = self.probe_ids(1)
        prompt = {"token_ids": list(token_ids), "request_id": request_id or alone}
        answer = self._read(self._answer, await self._ask(prompt, parameters, timeout_s, priority))
        return prompt_logprobs(answer, token_ids, self.base_url)

    async def warm_up(self, token_ids: Sequence[int], *, n: int, max_tokens: int, timeout_s: float) -> None:
        """Samples and throws away, whatever the weights: the first batches of a server are slow."""
        parameters = {"n": n, "max_tokens": max_tokens, "ignore_eos": True, "logprobs": 0, "detokenize": False}
        await self._ask({"token_ids": list(token_ids)}, parameters, timeout_s)

    async def is_healthy(self, timeout_s: float = 5.0) -> bool:
        """Whether the server answers and its engine lives."""
        try:
            await self._http.request("GET", "/health", timeout_s=timeout_s)
        except ReplicaError:
            return False
        return True

    async def is_paused(self) -> bool:
        return self._decoded(await self._http.request("GET", "/is_paused"), _Paused).is_paused

    async def worker_status(self, round_id: str = "") -> WorkerStatus:
        """State of staging and of the weights; renews the lease if `round_id` is its holder."""
        body = {"method": "weir_status", "kwargs": {"round_id": round_id}}
        return worker_status(await self._http.request("POST", "/collective_rpc", body=body), self.base_url)

    async def weight_version(self) -> int | None:
        """Policy version that answers carry; None for weights it started with, or that no probe has passed yet."""
        name = self._decoded(await self._http.request("GET", "/weight_info"), _Weights).weight_version
        return version_named(name)

    async def metrics(self, *, timeout_s: float | None = None) -> dict[str, float]:
        """Prometheus metrics of vLLM and of the plugin, name -> value summed over labels.

        One has a label beside its name: `DEFERRED`.

        Not read by prometheus_client: its parser takes 26 ms for vLLM's page, this half a millisecond, and a worker's
        event loop reads the page of every replica once a second.
        """
        text = (await self._http.request("GET", "/metrics", timeout_s=timeout_s)).decode(errors="replace")
        totals: dict[str, float] = {}
        for name, value in [*_METRIC.findall(text), *((DEFERRED, value) for value in _DEFERRED.findall(text))]:
            try:
                totals[name] = totals.get(name, 0.0) + float(value)
            except ValueError:
                raise Malformed(f"{self.base_url} says that {name} is {value!r}, expected a number") from None
        return totals

    async def num_requests(self) -> int:
        """Requests running or waiting, as of the engine's last step."""
        metrics = await self.metrics()
        try:
            number = metrics["vllm:num_requests_running"] + metrics["vllm:num_requests_waiting"]
        except KeyError as error:
            raise Malformed(f"{self.base_url} has no metric {error.args[0]}: this vLLM is of another version") from None
        if not 0 <= number < math.inf:
            raise Malformed(f"{self.base_url} says that {number} requests run or wait")
        return int(number)

    async def _ask(
        self, given: dict[str, Any], parameters: dict[str, Any], timeout_s: float, priority: int = 0
    ) -> bytes:
        """The payload of packed answers to what is given: `token_ids`, or `prompts`."""
        body = {**given, "sampling_params": parameters, "packed": True}
        if priority:
            body["priority"] = priority
        if priority < VLLM_PRIORITY["evaluation"]:
            return await self._http.request("POST", GENERATE, body=body, timeout_s=timeout_s)
        request = self._http.request("POST", GENERATE, body=body, timeout_s=_MOST_TIMES * timeout_s)
        asking = asyncio.ensure_future(request)
        try:
            for _ in range(_MOST_TIMES):
                await asyncio.wait([asking], timeout=timeout_s)
                if asking.done() or not await self._holds(meanwhile=asking):
                    break
            if asking.done():
                return asking.result()
            raise Unreachable(f"POST {self.base_url}{GENERATE}: no answer within {timeout_s} s")
        finally:
            if not asking.done():
                asking.cancel()
                with suppress(asyncio.CancelledError, ReplicaError):
                    await asking

    async def _holds(self, *, meanwhile: asyncio.Future[bytes]) -> bool:
        """Whether answers are held there, since users go first; the look ends with the request."""
        looking = asyncio.ensure_future(self.metrics())
        both: list[asyncio.Future[Any]] = [meanwhile, looking]
        try:
            await asyncio.wait(both, timeout=_LOOK_S, return_when=asyncio.FIRST_COMPLETED)
            return looking.done() and looking.result().get(DEFERRED, 0.0) > 0
        except ReplicaError:
            return False
        finally:
            looking.cancel()
            with suppress(asyncio.CancelledError, ReplicaError):
                await looking

    def _read(self, decoder: msgspec.msgpack.Decoder[T], payload: bytes) -> T:
        try:
            return decoder.decode(payload)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise Malformed(f"{self.base_url} sent an answer that can't be read: {error}") from error

    def _decoded(self, payload: bytes, kind: type[T]) -> T:
        try:
            return msgspec.json.decode(payload, type=kind)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise Malformed(f"{self.base_url} sent {payload[:200]!r}: {error}") from error


def _sampling(n: int, max_tokens: int, temperature: float, stop_token_ids: Sequence[int]) -> dict[str, Any]:
    """In vLLM's words: nothing but `stop_token_ids` ends an answer, and each token comes with its log-prob."""
    return {
        "n": n,
        "max_tokens": max_tokens,
        "temperature": temperature,
        "stop_token_ids": list(stop_token_ids),
        "ignore_eos": True,
        "logprobs": 0,
        "detokenize": False,
    }
