"""An engine behind a proxy, started by a replica's supervisor with vLLM's command line in place of vLLM.

    python -m tools.testing.chaos.server --port 8000 ...

WEIR_CHAOS_ENGINE is the engine's module, which gets the same command line with another port; WEIR_CHAOS_WIRE is the
file that tells the proxy what is wrong. Ends when the engine ends, with its status.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import signal
from pathlib import Path

from serving_bridge.processes import free_port, python_module
from tools.command_line import CommandParser
from tools.testing.chaos.wire import Proxy, told

_HOST = "127.0.0.1"


async def serve(port: int, arguments: list[str]) -> int:
    engine_port = free_port(host=_HOST)
    command = [*python_module(os.environ["WEIR_CHAOS_ENGINE"]), *arguments, "--port", str(engine_port)]
    engine = await asyncio.create_subprocess_exec(*command)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, engine.send_signal, number)
    path = Path(os.environ["WEIR_CHAOS_WIRE"])
    proxy = Proxy(_HOST, engine_port, fault=lambda: told(path), draws=random.Random(port))
    server = await asyncio.start_server(proxy.connected, _HOST, port)
    try:
        status = await engine.wait()
    finally:
        server.close()
    return status if status >= 0 else 128 - status


def main() -> None:
    parser = CommandParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, required=True)
    found, arguments = parser.parse_known_args()
    raise SystemExit(asyncio.run(serve(found.port, arguments)))


if __name__ == "__main__":
    main()
