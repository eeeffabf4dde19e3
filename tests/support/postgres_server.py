"""The PostgreSQL server of the tests: the one that WEIR_TEST_POSTGRES names, or one of our own."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tools.bench.queue.postgres_server import NoServerError, running_server


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """URL of a server on which tests may make schemas."""
    if url := os.environ.get("WEIR_TEST_POSTGRES"):
        yield url
        return
    try:
        server = running_server(durable=False)
        with server as running:
            yield running.url
    except NoServerError as error:
        pytest.skip(f"{error}, or set WEIR_TEST_POSTGRES to a URL")
