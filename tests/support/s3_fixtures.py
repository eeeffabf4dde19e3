"""The fixtures of tests on a real S3 server (moto), which is shared by all of a session."""

from __future__ import annotations

import http.client
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.support.s3 import CREDENTIALS, S3, proxy_to

_SERVER = """
import sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="session")
def moto_address() -> Iterator[tuple[str, int]]:
    """Where moto listens."""
    pytest.importorskip("moto")
    server = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", _SERVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    with server:
        assert server.stdout is not None
        yield "127.0.0.1", int(server.stdout.readline())
        server.kill()


@pytest.fixture
def s3(moto_address: tuple[str, int], monkeypatch: pytest.MonkeyPatch) -> Iterator[S3]:
    """The server behind the proxy, with an empty bucket called `bucket`; the environment leads to it."""
    pytest.importorskip("s3fs")
    with proxy_to(moto_address) as server:
        for name, value in CREDENTIALS.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        direct = http.client.HTTPConnection(*moto_address)
        direct.request("POST", "/moto-api/reset")
        direct.getresponse().read()
        direct.request("PUT", "/bucket")
        assert direct.getresponse().read() is not None
        direct.close()
        yield server
