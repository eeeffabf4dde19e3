"""Serves the page until it is stopped."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp

from tools.dashboard.access import access_to
from tools.dashboard.app import build_app
from tools.dashboard.errors import DashboardError
from tools.dashboard.watch import Watch

HOST, PORT = "127.0.0.1", 8790
#: Behind the processes of a run on the same machine.
_NICE = 10
_MAX_REQUESTS = 64


def serve(
    directories: Sequence[Path],
    *,
    host: str = HOST,
    port: int = PORT,
    token: str | None = None,
    more_hosts: Iterable[str] = (),
    say: Callable[[str], None] = print,
) -> None:
    """Serves the page of these runs until SIGINT or SIGTERM.

    Args:
      port: 0 takes any free one.
      token: that readers must have; needed on other addresses than loopback.
      more_hosts: further names that people reach it by.
      say: told the page's address once it can be reached.

    Raises:
      DashboardError: a directory is none of a run, others could reach the page without a token, or the address can't
        be had.
      ConfigError: a run's config.toml can't be used.
    """
    access_to(host, port, token, more_hosts)  # refused before anything is read
    watch = Watch(directories)
    run(
        lambda port: build_app(watch, access_to(host, port, token, more_hosts)),
        host,
        port,
        lambda address: say(f"{address}  (Ctrl-C ends it; the runs are only read)"),
    )


def run(app_at: Callable[[int], ASGIApp], host: str, port: int, say: Callable[[str], None]) -> None:
    """Serves an application until SIGINT or SIGTERM.

    Args:
      app_at: makes it for the port that it got.
      port: 0 takes any free one.
      say: told its address once it can be reached.

    Raises:
      DashboardError: the address can't be had.
    """
    listener = _listener(host, port)
    with listener:
        port = listener.getsockname()[1]
        app = app_at(port)
        os.nice(_NICE)
        shown = f"[{host}]" if ":" in host else host
        say(f"http://{shown}:{port}/")
        config = uvicorn.Config(
            app,
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            ws="none",
            limit_concurrency=_MAX_REQUESTS,
            timeout_graceful_shutdown=2,
        )
        uvicorn.Server(config).run(sockets=[listener])


def _listener(host: str, port: int) -> socket.socket:
    if not 0 <= port <= 65535:  # getaddrinfo takes it modulo 65536
        raise DashboardError(f"--port {port}: expected 0 to 65535")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        raise DashboardError(f"--host {host!a}: {error}: expected an address of this machine") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(128)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise DashboardError(
                f"port {port} of {host} is in use: give another with --port, or --port 0 for any free one"
            ) from error
        raise DashboardError(f"{host}:{port} can't be listened at: {error}") from error
    return listener
