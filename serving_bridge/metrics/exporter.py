"""An HTTP server in a thread that answers Prometheus, and nobody else: a few pages, GET alone, no arguments."""

from __future__ import annotations

import os
import re
import socket
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from learner_jax.runtime import WeirError

#: Scrapes answered at the same time; further ones are told to come again.
MAX_AT_ONCE = 8
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_REQUEST_S = 5.0
_JOIN_S = 2.0
_OWN_ADDRESS = "WEIR_ADDRESS"
_LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
_EVERYWHERE = frozenset({"0.0.0.0", "::"})
_NUMBERED = re.compile(r"-(\d{1,4})\Z")

Page = Callable[[], bytes]


class ExporterError(WeirError, RuntimeError):
    """Metrics can't be served at the address that was set; says which setting to change."""


class Exporter:
    """Serves pages until it is closed. Owns its socket and threads.

    Args:
      pages: path -> what makes the page; called by the thread of a scrape, and may raise `OSError` only.
      port: 0 for any free one.

    Raises:
      ExporterError: the address can't be listened at.
    """

    def __init__(self, host: str, port: int, pages: Mapping[str, Page], *, setting: str = "telemetry.port") -> None:
        try:
            family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            self._server = _Server(family, address[:2], dict(pages), host)
        except OSError as error:
            raise ExporterError(
                f"metrics can't be served at {host} port {port}: {error.strerror or error}; set {setting} to a free "
                f"port, or to 0 for any, or telemetry.metrics to false"
            ) from None
        self.host, self.port = host, int(self._server.server_address[1])
        self._thread = threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(_JOIN_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def advertised(host: str, port: int) -> str:
    """host:port under which others reach what listens at `host`; this host's name where that is every address."""
    name = os.environ.get(_OWN_ADDRESS) or socket.gethostname() if host in _EVERYWHERE else host
    return f"[{name}]:{port}" if ":" in name else f"{name}:{port}"


def port_of(first: int, process: str) -> int:
    """The port of a process: that of its role, plus the number at the end of its name; 0 stays 0."""
    found = _NUMBERED.search(process)
    return first + int(found[1]) if first and found else first


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, family: int, address: Any, pages: Mapping[str, Page], host: str) -> None:
        self.address_family = socket.AddressFamily(family)
        self.pages, self.is_local = pages, host in _LOOPBACK
        self.room = threading.BoundedSemaphore(MAX_AT_ONCE)
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        """Without the reverse look-up of the address that http.server makes, which may take long."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no matter of the run's log."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = _REQUEST_S
    server_version, sys_version = "weir", ""

    def do_GET(self) -> None:
        if self.server.is_local and not _names_loopback(self.headers.get("Host", "")):
            self._answer(421, b"the Host is not this server's address\n")  # a web page's name that leads here
            return
        page = self.server.pages.get(self.path)
        if page is None:
            self._answer(404, f"there are {', '.join(self.server.pages)}\n".encode())
            return
        if not self.server.room.acquire(blocking=False):
            self._answer(503, b"too many scrapes at the same time\n")
            return
        try:
            content = page()
        except OSError as error:
            self._answer(503, f"{type(error).__name__}\n".encode())
        else:
            self._answer(200, content)
        finally:
            self.server.room.release()

    def _answer(self, status: int, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", CONTENT_TYPE)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Scrapes are not told in the run's log."""


def _names_loopback(host: str) -> bool:
    name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    return name.lower() in _LOOPBACK
