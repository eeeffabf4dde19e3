"""Files that share vLLM servers stay together, in their order, and keep their names right."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from tests.conftest import REPOSITORY
from tests.support.shared_servers import FILES, put_in_order, scope_of

FIXTURES = 'pytest_plugins = ["tests.support.weight_fixtures"]'


def test_all_files_that_use_the_servers_are_listed() -> None:
    using = {
        str(path.relative_to(REPOSITORY))
        for path in (REPOSITORY / "tests").rglob("test_*.py")
        if path.name != "test_shared_servers.py" and FIXTURES in path.read_text()
    }
    assert using == set(FILES)


def test_they_run_in_one_worker_in_the_listed_order() -> None:
    nodes = ["tests/a.py::one", f"{FILES[2]}::three", "tests/b.py::two", f"{FILES[0]}::four", f"{FILES[0]}::five"]
    items: list[Any] = [SimpleNamespace(nodeid=node) for node in nodes]
    put_in_order(items)
    assert [item.nodeid for item in items] == [nodes[0], nodes[3], nodes[4], nodes[1], nodes[2]]
    assert len({scope_of(node) for node in nodes}) == 3
    assert scope_of(nodes[0]) == "tests/a.py"
    assert scope_of(nodes[1]) == scope_of(nodes[3])
