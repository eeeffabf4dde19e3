"""A proxy in front of an S3 server that goes wrong as told; tests.support.s3_fixtures starts both."""

from __future__ import annotations

import contextlib
import http.client
import re
import socket
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

Kind = Literal["503", "500", "403", "reset", "hang", "truncate", "lost answer", "stale", "501"]

_CODES = {
    "503": (503, "SlowDown", "Please reduce your request rate."),
    "500": (500, "InternalError", "We encountered an internal error."),
    "403": (403, "SignatureDoesNotMatch", "The request signature we calculated does not match."),
    "501": (501, "NotImplemented", "A header you provided implies functionality that is not implemented."),
}
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "test-key",
    "AWS_SECRET_ACCESS_KEY": "test-secret-that-must-not-be-told",
    "AWS_DEFAULT_REGION": "us-east-1",
}


@dataclass
class Fault:
    """What becomes of the next `times` requests of a method whose target (path and query) matches."""

    kind: Kind
    method: str = "GET"
    target: str = ""
    times: int = 1_000_000

    def is_for(self, method: str, target: str) -> bool:
        return self.times > 0 and method == self.method and re.search(self.target, target) is not None


@dataclass
class S3:
    """The server as its clients see it.

    Attributes:
      faults: looked at in order; the first that fits a request is used up by one.
      requests: (method, target) of all that came.
    """

    url: str
    direct: str
    faults: list[Fault] = field(default_factory=list)
    requests: list[tuple[str, str]] = field(default_factory=list)

    def count(self, method: str, target: str = "") -> int:
        return sum(one == method and re.search(target, what) is not None for one, what in self.requests)

    def client(self) -> Any:
        """boto3's client, past the proxy."""
        import boto3

        return boto3.client(
            "s3",
            endpoint_url=self.direct,
            region_name="us-east-1",
            aws_access_key_id="direct",
            aws_secret_access_key="direct",
        )


#: status, headers, body
_Answer = tuple[int, dict[str, str], bytes]


class _Proxy(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, upstream: tuple[str, int]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream = upstream
        self.s3 = S3(f"http://127.0.0.1:{self.server_port}", f"http://{upstream[0]}:{upstream[1]}")
        #: moto looks and writes in two steps; a real server does both at once
        self.one_by_one = threading.Lock()
        #: target -> what was listed there last
        self.lists: dict[str, _Answer] = {}


@contextlib.contextmanager
def proxy_to(address: tuple[str, int]) -> Iterator[S3]:
    server = _Proxy(address)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server.s3
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Proxy

    def handle_one_request(self) -> None:
        with contextlib.suppress(ConnectionError):
            super().handle_one_request()

    def _serve(self) -> None:
        body = self._body()
        self.server.s3.requests.append((self.command, self.path))
        kind = self._fault()
        if kind in _CODES:
            self._refuse(*_CODES[kind])
        elif kind == "reset":
            self._reset()
        elif kind == "hang":
            time.sleep(30)
            self._reset()
        elif kind == "stale" and self.path in self.server.lists:
            self._answer(*self.server.lists[self.path])
        else:
            self._pass_on(body, kind)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _serve  # noqa: N815

    def _fault(self) -> Kind | None:
        """What becomes of this request; a fault is used up by one."""
        fault = next((one for one in self.server.s3.faults if one.is_for(self.command, self.path)), None)
        if fault is None:
            return None
        fault.times -= 1
        return None if fault.kind == "501" and "If-None-Match" not in self.headers else fault.kind

    def _pass_on(self, body: bytes, kind: Kind | None) -> None:
        with self.server.one_by_one if "If-None-Match" in self.headers else contextlib.nullcontext():
            answer = self._forward(body)
        if "list-type=2" in self.path:
            self.server.lists[self.path] = answer
        if kind == "lost answer":
            self._reset()
        else:
            self._answer(*answer, cut=kind == "truncate")

    def _body(self) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            pieces = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                pieces.append(self.rfile.read(size))
                self.rfile.readline()
            while self.rfile.readline().strip():
                pass
            return b"".join(pieces)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _forward(self, body: bytes) -> _Answer:
        connection = http.client.HTTPConnection(*self.server.upstream)
        try:
            headers = {name: value for name, value in self.headers.items() if name != "Transfer-Encoding"}
            headers["Content-Length"] = str(len(body))
            connection.request(self.command, self.path, body=body, headers=headers)
            answer = connection.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()
        finally:
            connection.close()

    def _answer(self, status: int, headers: dict[str, str], body: bytes, *, cut: bool = False) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            if name.lower() not in ("connection", "transfer-encoding", "content-length"):
                self.send_header(name, value)
        told = next((value for name, value in headers.items() if name.lower() == "content-length"), None)
        length = told if told is not None and self.command == "HEAD" else str(len(body))
        self.send_header("Content-Length", length)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: len(body) // 2] if cut else body)
        if cut:
            self.wfile.flush()
            self._reset()

    def _refuse(self, status: int, code: str, text: str) -> None:
        body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{text}</Message></Error>".encode()
        self._answer(status, {"Content-Type": "application/xml"}, b"" if self.command == "HEAD" else body)

    def _reset(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.shutdown(socket.SHUT_RDWR)
            self.connection.close()

    def log_message(self, *_: Any) -> None:
        """Says nothing."""
