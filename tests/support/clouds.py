"""Buckets on servers of Google Cloud Storage's and Azure Blob Storage's protocols, behind a proxy with faults.

tests.support.clouds_fixtures starts the servers.
"""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.support.s3 import S3, proxy_to

ACCOUNT = "weir"
SECRET = base64.b64encode(b"a-test-key-that-must-not-be-told").decode()
_START_S = 60.0
_BUCKETS = itertools.count()


@dataclass(frozen=True)
class Cloud:
    """An empty bucket of a server.

    Attributes:
      url: scheme://bucket/run.
      server: the proxy, with its faults and the requests that came.
      writes: method of a request that writes a small object.
    """

    url: str
    server: S3
    writes: str


@contextlib.contextmanager
def listening(command: list[str], port: int, environment: dict[str, str]) -> Iterator[tuple[str, int]]:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    try:
        deadline = time.monotonic() + _START_S
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=1).close()
            except urllib.error.HTTPError:
                break  # it answers
            except OSError:
                assert process.poll() is None, f"{command[0]} ended with status {process.returncode}"
                assert time.monotonic() < deadline, f"{command[0]} does not listen"
                time.sleep(0.05)
            else:
                break
        yield "127.0.0.1", port
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def google(address: tuple[str, int], monkeypatch: pytest.MonkeyPatch) -> Iterator[Cloud]:
    with proxy_to(address) as server:
        bucket = f"bucket-{next(_BUCKETS)}"
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.url)
        monkeypatch.setenv("FSSPEC_GS_TOKEN", "anon")
        # Where an upload in parts goes on is told by the server, which does not know of the proxy.
        _sent(f"{server.direct}/_internal/config", {"externalUrl": server.url}, "PUT")
        _sent(f"{server.direct}/storage/v1/b?project=x", {"name": bucket}, "POST")
        yield Cloud(f"gs://{bucket}/run", server, "POST")


@contextlib.contextmanager
def azure(address: tuple[str, int], monkeypatch: pytest.MonkeyPatch) -> Iterator[Cloud]:
    import adlfs

    with proxy_to(address) as server:
        bucket = f"bucket-{next(_BUCKETS)}"
        monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", connection_string(server.url))
        made = adlfs.AzureBlobFileSystem(connection_string=connection_string(server.direct), skip_instance_cache=True)
        made.mkdir(bucket)
        yield Cloud(f"az://{bucket}/run", server, "PUT")


def connection_string(url: str, key: str = SECRET) -> str:
    return f"DefaultEndpointsProtocol=http;AccountName={ACCOUNT};AccountKey={key};BlobEndpoint={url}/{ACCOUNT};"


def _sent(url: str, body: dict[str, str], method: str) -> None:
    headers = {"Content-Type": "application/json"}
    with urllib.request.urlopen(
        urllib.request.Request(url, json.dumps(body).encode(), headers, method=method), timeout=10
    ) as answer:
        answer.read()
