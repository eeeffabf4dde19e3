"""The gateway as the benchmark runs it: one process over the engine, one tenant, with or without guards.

python -m tools.bench.gateway.door --port 8080 --engine http://127.0.0.1:8000 --folder FOLDER [--guards]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import uvloop

from serving_bridge.access import FreshKeys
from serving_bridge.gateway import Gateway, GuardedGateway, listener
from serving_bridge.routing import ReplicaRegistry
from serving_bridge.safety import AuditLog, Guards
from serving_bridge.settings import GatewaySettings, SafetySettings
from serving_bridge.text import load_tokenizer
from tools.assembly import StopRequest, collect_garbage_less_often
from tools.command_line import CommandParser

_FOREVER_S = 1e6


def main() -> None:
    parser = CommandParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--engine", required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--guards", action="store_true")
    given = parser.parse_args()
    registry = ReplicaRegistry(given.folder / "replicas", max_silence_s=_FOREVER_S)
    registry.report("engine", url=given.engine, state="healthy", version=1, step=1, start="bench")
    gateway = Gateway(
        GatewaySettings(port=given.port),
        load_tokenizer(given.folder),
        registry,
        FreshKeys(),
        name="gateway-0",
        max_context=32_768,
        log=lambda *_, **__: None,
        should_stop=StopRequest().install(),
        guards=GuardedGateway(Guards(SafetySettings(), audit=AuditLog(given.folder / "audit")))
        if given.guards
        else None,
    )
    collect_garbage_less_often()
    with listener("127.0.0.1", given.port, shared=False) as bound:
        uvloop.run(gateway.run(bound))


if __name__ == "__main__":
    main()
