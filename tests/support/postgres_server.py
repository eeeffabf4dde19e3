"""The PostgreSQL server of the tests: the one that WEIR_TEST_POSTGRES names, or one of our own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tools.bench.queue.postgres_server import NoServerError, running_server

ENGINES = ["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)]


@pytest.fixture(params=ENGINES)
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where no database is yet, on each engine: a path, or a schema of a server."""
    if request.param == "sqlite":
        return str(tmp_path / "state.db")
    from tests.support.queue_engines import fresh_url  # most tests do without the queue

    return fresh_url(request.getfixturevalue("postgres_url"))


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
