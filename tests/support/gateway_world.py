"""A gateway on a real socket over replicas that stream what the test says, behind the gate of real ones."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from serving_bridge.access import FreshKeys, Gate, Refused
from serving_bridge.feedback import FeedbackStore
from serving_bridge.gateway import Admission, Fallback, Gateway, Guards, Observations, Split, listener
from serving_bridge.recordings import Recorder
from serving_bridge.routing import ReplicaRegistry
from serving_bridge.settings import GatewaySettings
from serving_bridge.text import Tokenizer

HOST = "127.0.0.1"
CONTEXT = 4096


@dataclass
class Script:
    """How a replica answers, and what it was asked.

    Attributes:
      text: of every answer; encoded token by token.
      tokens: in its place.
      token_s: pause before each token.
      status: of its answers; 200 streams.
      error: that its streams, or answers of another status, say in place of an answer.
      lost_after: breaks the connection off after so many tokens.
      finish: reason of each answer's end.
      version: that it says to have sampled; `row_version` is what its row says, the same where None.
      texts: of its answers in turn, before `text`.
      logprob: of every token of the answers in turn; the last one goes on.
      asked: bodies, in order.
      running, aborted: streams that go on, and that their client left.
    """

    text: str = "It is twelve."
    tokens: Sequence[int] = ()
    token_s: float = 0.0
    status: int = 200
    error: dict[str, Any] | None = None
    lost_after: int | None = None
    finish: str = "stop"
    version: str = "3"
    row_version: int | None = None
    arm: str = ""
    texts: Sequence[str] = ()
    logprob: Sequence[float] = (-0.5,)
    asked: list[dict[str, Any]] = field(default_factory=list)
    running: int = 0
    aborted: int = 0


class Replica:
    """A server with vLLM's streaming route."""

    def __init__(self, tokenizer: Tokenizer, script: Script, name: str) -> None:
        self.tokenizer, self.script, self.name = tokenizer, script, name
        self.start, self.url = f"start-{name}", ""
        self.gate: Gate | None = None

    async def generate(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        headers = [(name.lower(), value) for name, value in request.raw_headers]
        assert self.gate is not None
        try:
            self.gate.check_body(self.gate.enter("POST", request.raw_path.encode(), b"", headers), body)
        except Refused as refused:
            return web.Response(status=refused.status, body=refused.payload())
        self.script.asked.append(json.loads(body))
        if self.script.status != 200:
            return web.json_response(
                {"error": self.script.error or {"message": "refused here"}}, status=self.script.status
            )
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        self.script.running += 1
        try:
            await self._stream(response, json.loads(body)["sampling_params"], request)
        except (ConnectionError, asyncio.CancelledError):
            self.script.aborted += 1
            raise
        finally:
            self.script.running -= 1
        return response

    async def _stream(self, response: web.StreamResponse, asked: dict[str, Any], request: web.Request) -> None:
        script, end, number = self.script, self.tokenizer.eos_ids[0], len(self.script.asked) - 1
        if script.error is not None:
            await response.write(b"data: " + json.dumps({"error": script.error}).encode() + b"\n\ndata: [DONE]\n\n")
            return
        text = script.texts[number] if number < len(script.texts) else script.text
        logprob = script.logprob[min(number, len(script.logprob) - 1)]
        tokens = list(script.tokens) or self.tokenizer.backend.encode(text, add_special_tokens=False).ids
        tokens = [*tokens, *([end] if script.finish == "stop" else [])]
        for place, token in enumerate(tokens):
            if script.lost_after is not None and place >= script.lost_after:
                assert request.transport is not None
                request.transport.abort()
                return
            if script.token_s:
                await asyncio.sleep(script.token_s)
            is_last = place == len(tokens) - 1
            for index in range(asked["n"]):
                choice: dict[str, Any] = {"index": index, "token_ids": [token], "finish_reason": None}
                if is_last:
                    spans = [{"version": script.version, "start": 0, "end": len(tokens)}]
                    choice |= {"finish_reason": script.finish, "weight_versions": spans}
                if "logprobs" in asked:
                    other = {"token_id": 5, "logprob": -2.0, "rank": 2}
                    own = {"token_id": token, "logprob": logprob, "rank": 1}
                    choice["logprobs"] = {"content": [{**own, "top_logprobs": [own, other]}]}
                await response.write(b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n")
        await response.write(b"data: [DONE]\n\n")

    async def metrics(self, request: web.Request) -> web.Response:
        return web.Response(text=f"vllm:num_requests_running {self.script.running}\nvllm:num_requests_waiting 0\n")


@dataclass
class World:
    """The gateway and what stands behind it.

    Attributes:
      url: of the gateway.
      events: what its log was told.
    """

    url: str
    gateway: Gateway
    replicas: dict[str, Replica]
    registry: ReplicaRegistry
    session: aiohttp.ClientSession
    events: list[dict[str, Any]]
    stop: Callable[[], None]
    port: int

    async def ask(self, path: str = "/v1/chat/completions", **fields: Any) -> tuple[int, Any]:
        """(status, answer) of a request with a user's message where none is given."""
        body = {"model": "policy", **({} if path.endswith("/completions") and "prompt" in fields else _MESSAGE)}
        async with self.session.post(self.url + path, json={**body, **fields}) as response:
            return response.status, await response.json()

    async def stream(self, path: str = "/v1/chat/completions", **fields: Any) -> list[Any]:
        """The events of a stream, without the one that ends it."""
        body = {"model": "policy", **({} if "prompt" in fields else _MESSAGE), **fields, "stream": True}
        async with self.session.post(self.url + path, json=body) as response:
            assert response.status == 200, await response.text()
            lines = (await response.text()).split("\n\n")
        events = [line.removeprefix("data: ") for line in lines if line]
        if events[-1] != "[DONE]":
            assert "error" in events[-1]
            return [json.loads(event) for event in events]
        return [json.loads(event) for event in events[:-1]]


_MESSAGE = {"messages": [{"role": "user", "content": "What is 5 + 7?"}]}


def text_of(events: Sequence[Any], index: int = 0) -> str:
    """The text of a choice in a stream."""
    choices = [choice for event in events for choice in event.get("choices", []) if choice["index"] == index]
    return "".join(choice["text"] if "text" in choice else choice["delta"].get("content") or "" for choice in choices)


@asynccontextmanager
async def running_gateway(
    folder: Path,
    tokenizer: Tokenizer,
    *scripts: Script,
    admission: Admission | None = None,
    guards: Guards | None = None,
    read_split: Callable[[], Split] | None = None,
    observations: Observations | None = None,
    recorder: Recorder | None = None,
    fallback: Fallback | None = None,
    feedback: FeedbackStore | None = None,
    **settings: Any,
) -> AsyncIterator[World]:
    """A gateway over one replica for each script, named r0, r1, ..."""
    keys, registry = FreshKeys(), ReplicaRegistry(folder / "replicas")
    runners, replicas = [], {}
    for number, script in enumerate(scripts or (Script(),)):
        replica = Replica(tokenizer, script, f"r{number}")
        runner = await serve(replica)
        runners.append(runner)
        control = keys.token("control", replica.url, replica.start)
        replica.gate = Gate(replica.url, control, keys.token("inference", replica.url, replica.start))
        replicas[replica.name] = replica
        report(registry, replica)
    events: list[dict[str, Any]] = []
    stopping: list[bool] = []
    options = {"port": 0, "drain_timeout_s": 2.0, **settings}
    gateway = Gateway(
        GatewaySettings(**options),
        tokenizer,
        registry,
        keys,
        name="gateway-0",
        max_context=CONTEXT,
        log=lambda event, **fields: events.append({"event": event, **fields}),
        should_stop=lambda: bool(stopping),
        admission=admission,
        guards=guards,
        read_split=read_split,
        observations=observations,
        recorder=recorder,
        fallback=fallback,
        feedback=feedback,
    )
    with listener(HOST, 0, shared=False) as bound:
        port = bound.getsockname()[1]
        running = asyncio.ensure_future(gateway.run(bound))
        try:
            await _until_open(port, running)
            async with aiohttp.ClientSession() as session:
                url = f"http://{HOST}:{port}"
                yield World(url, gateway, replicas, registry, session, events, lambda: stopping.append(True), port)
        finally:
            stopping.append(True)
            await asyncio.wait_for(running, 30)
            for runner in runners:
                await runner.cleanup()


def report(registry: ReplicaRegistry, replica: Replica, state: str = "healthy") -> None:
    """Writes a replica's row as its script says."""
    script = replica.script
    version = int(script.version) if script.row_version is None else script.row_version
    registry.report(
        replica.name, url=replica.url, state=state, version=version, step=3, start=replica.start, arm=script.arm
    )


async def serve(replica: Replica) -> web.AppRunner:
    app = web.Application()
    app.router.add_post("/inference/v1/generate", replica.generate)
    app.router.add_get("/metrics", replica.metrics)
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, HOST, 0).start()
    assert runner.addresses
    replica.url = f"http://{HOST}:{runner.addresses[0][1]}"
    return runner


async def _until_open(port: int, running: asyncio.Future[None]) -> None:
    for _ in range(6000):
        if running.done():
            running.result()
        try:
            socket.create_connection((HOST, port), timeout=0.1).close()
        except OSError:
            await asyncio.sleep(0.01)
        else:
            return
    raise TimeoutError("the gateway does not listen")
