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


@contextlib.contextmanager
def proxy_to(address: tuple[str, int]) -> Iterator[S3]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(address))
    server.daemon_threads = True
    server.s3 = S3(f"http://127.0.0.1:{server.server_port}", f"http://{address[0]}:{address[1]}")  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server.s3  # type: ignore[attr-defined]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _handler(address: tuple[str, int]) -> type[BaseHTTPRequestHandler]:
    # moto looks and writes in two steps; a real server does both at once.
    one_by_one, lists = threading.Lock(), dict[str, tuple[int, dict[str, str], bytes]]()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_one_request(self) -> None:
            with contextlib.suppress(ConnectionError):
                super().handle_one_request()

        def _serve(self) -> None:
            s3: S3 = self.server.s3  # type: ignore[attr-defined]
            body = self._body()
            s3.requests.append((self.command, self.path))
            fault = next((one for one in s3.faults if one.is_for(self.command, self.path)), None)
            if fault is not None:
                fault.times -= 1
            kind = fault.kind if fault is not None else None
            if kind == "501" and "If-None-Match" not in self.headers:
                kind = None
            if kind in _CODES:
                self._refuse(*_CODES[kind])
            elif kind == "reset":
                self._reset()
            elif kind == "hang":
                time.sleep(30)
                self._reset()
            elif kind == "stale" and self.path in lists:
                self._answer(*lists[self.path])
            else:
                with one_by_one if "If-None-Match" in self.headers else contextlib.nullcontext():
                    answer = self._forward(body)
                if "list-type=2" in self.path:
                    lists[self.path] = answer
                if kind == "lost answer":
                    self._reset()
                elif kind == "truncate":
                    self._answer(*answer, cut=True)
                else:
                    self._answer(*answer)

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _serve  # noqa: N815

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

        def _forward(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
            connection = http.client.HTTPConnection(*address)
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

    return Handler
