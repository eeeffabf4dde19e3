"""The fake engine as a process that takes vLLM's command line, so that a replica's supervisor can start it instead.

    python -m tools.testing.fake_vllm.server --model DIR --port 8000 --max-model-len 64

Options of vLLM that do not change what the engine answers are taken and ignored. POST /disturb sets what goes wrong
(fields of `core.Disturbance`); {"exit": STATUS} ends the process at once. The gate is vLLM's (`access.gate`),
with the tokens and the address that the environment names.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
from aiohttp import web

from serving_bridge.access import CONTROL_TOKEN, FENCING_HEADER, Gate, Refused, Route
from serving_bridge.vllm_plugin import MODEL_FAMILY, STORE_ROOT
from tools.command_line import CommandParser
from tools.testing.fake_vllm.core import Disturbance, EngineDiedError, EngineSettings
from tools.testing.fake_vllm.engine import Engine
from tools.testing.fake_vllm.weights import ModelWeights, Worker

_GENERATE = "/inference/v1/generate"
_DIED = 86
_MAX_BODY_BYTES = 64 << 20
_POLL_S = 0.05


DISTURB = Route("POST", b"/disturb", "control", max_bytes=1 << 16)


def application(engine: Engine, gate: Gate) -> web.Application:
    """The engine's routes, behind a gate that knows `DISTURB` too.

    A client that goes away ends its generation and nothing else, as in vLLM.
    """

    @web.middleware
    async def guard(request: web.Request, handler: Any) -> web.StreamResponse:
        headers = [(name.lower(), value) for name, value in request.raw_headers]
        path, _, query = request.raw_path.partition("?")
        try:
            entry = gate.enter(request.method, path.encode(), query.encode(), headers)
            gate.check_body(entry, await request.read())
        except Refused as refused:
            return web.Response(status=refused.status, body=refused.payload(), content_type="application/json")
        response: web.StreamResponse = await handler(request)
        return response

    async def answer(request: web.Request) -> web.Response:
        body = await request.read()
        token = request.headers.get(FENCING_HEADER)  # a number: the gate has seen it
        asked = engine.handle(
            request.method, request.path, body, dict(request.query), None if token is None else int(token)
        )
        work = asyncio.ensure_future(asked)
        try:
            status, payload = await (work if request.path == _GENERATE else asyncio.shield(work))
        except EngineDiedError:
            os._exit(_DIED)
        return web.Response(status=status, body=payload, content_type="application/json")

    async def disturb(request: web.Request) -> web.Response:
        fields = msgspec.json.decode(await request.read())
        if "exit" in fields:
            os._exit(int(fields["exit"]))
        engine.worker.breaks = int(fields.pop("breaks", engine.worker.breaks))
        fields["failures"] = Counter(fields.get("failures", {}))
        engine.disturbance = Disturbance(**fields)
        engine.notice()
        return web.Response()

    app = web.Application(client_max_size=_MAX_BODY_BYTES, middlewares=[guard])
    app.router.add_post("/disturb", disturb)
    app.router.add_route("*", "/{path:.*}", answer)
    return app


async def serve(engine: Engine, gate: Gate, host: str, port: int, drain_s: float) -> None:
    """Serves until SIGTERM; answers in flight then get `drain_s`, and new ones are aborted."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    runner = web.AppRunner(application(engine, gate), access_log=None, handler_cancellation=True, shutdown_timeout=1.0)
    await runner.setup()
    await web.TCPSite(runner, host, port).start()
    await stop.wait()
    engine.draining = True
    end_s = asyncio.get_running_loop().time() + drain_s
    while engine.num_requests and asyncio.get_running_loop().time() < end_s:
        await asyncio.sleep(_POLL_S)
    engine.abort_everything()
    await runner.cleanup()


def main() -> None:
    parser = CommandParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, type=Path)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--max-model-len", type=int, required=True)
    parser.add_argument("--max-num-seqs", type=int, default=256)
    parser.add_argument("--shutdown-timeout", type=float, default=0.0)
    parser.add_argument("--token-s", type=float, default=0.0, help="seconds per token on top of the computation")
    parser.add_argument("--seed", type=int, default=0)
    arguments, _ = parser.parse_known_args()
    asyncio.run(_run(arguments))


async def _run(arguments: Any) -> None:
    settings = EngineSettings(
        max_model_len=arguments.max_model_len,
        max_num_seqs=arguments.max_num_seqs,
        token_s=arguments.token_s,
        control_s=0.02,  # as long as vLLM sleeps in a pause
    )
    gate = Gate.of_environment(os.environ, also=[DISTURB])
    worker = Worker(
        ModelWeights(arguments.model, family=os.environ.get(MODEL_FAMILY, "")),
        root=os.environ[STORE_ROOT],
        clock=asyncio.get_running_loop().time,
    )
    token = os.environ[CONTROL_TOKEN]
    engine = Engine(worker, settings, draws=random.Random(arguments.seed), control_token=token)
    await serve(engine, gate, arguments.host, arguments.port, arguments.shutdown_timeout)


if __name__ == "__main__":
    main()
