"""The fixture of tests on real servers: shared by all of a session; the last tests kill them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.weight_world import World, running_world


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with running_world(tmp_path_factory.mktemp("round")) as servers:
        yield servers
