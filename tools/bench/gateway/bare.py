"""A server that refuses everybody with the same words: what uvicorn and Starlette cost by themselves.

python -m tools.bench.gateway.bare --port 8080
"""

from __future__ import annotations

import argparse

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from serving_bridge.gateway import errors
from tools.command_line import CommandParser

_REFUSAL = errors.GatewayError(
    429, "Too many requests or tokens a minute.", code="rate_limit_exceeded", retry_after_s=60.0
)


async def _refused(request: Request) -> Response:
    headers = {name.decode(): value.decode() for name, value in _REFUSAL.headers()}
    return Response(_REFUSAL.payload(), _REFUSAL.status, headers, media_type="application/json")


def main() -> None:
    parser = CommandParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, required=True)
    given = parser.parse_args()
    app = Starlette(routes=[Route("/v1/chat/completions", _refused, methods=["POST"])])
    uvicorn.run(app, host="127.0.0.1", port=given.port, log_config=None, access_log=False, loop="uvloop")


if __name__ == "__main__":
    main()
