"""The order of files: the longest first, and those that share what is expensive to start together and in theirs."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

from tests.conftest import REPOSITORY
from tests.support.file_order import LONG_FILES, longest_first
from tests.support.shared_servers import FILES, FORKING, INSTALLING, LOADING_VLLM, ON_CLOUDS, ON_S3, scope_of

FIXTURES = 'pytest_plugins = ["tests.support.weight_fixtures"]'


def files_with(pattern: str) -> set[str]:
    return {
        str(path.relative_to(REPOSITORY))
        for path in (REPOSITORY / "tests").rglob("test_*.py")
        if path.name != "test_file_order.py" and re.search(pattern, path.read_text(), re.MULTILINE)
    }


def test_all_files_that_use_the_servers_are_listed() -> None:
    assert files_with(re.escape(FIXTURES)) == set(FILES)


def test_all_files_that_load_vllm_themselves_are_listed() -> None:
    assert files_with(r"^ +from vllm|^from tests\.support\.live_models") - set(FILES) == set(LOADING_VLLM)


def test_all_files_whose_programs_are_forked_are_listed() -> None:
    assert files_with(r"^from tests\.support(\.forked_python| import .*host_processes|\.host_processes)") == set(
        FORKING
    )


def test_all_files_on_object_storage_are_listed() -> None:
    assert files_with(r'pytest_plugins = \["tests\.support\.s3_fixtures"') == set(ON_S3)
    assert files_with(r'pytest_plugins = \["tests\.support\.clouds_fixtures"') == set(ON_CLOUDS)


def test_all_files_that_install_weir_are_listed() -> None:
    assert files_with(r"^from tests\.support\.installed import installed") == set(INSTALLING)


def test_files_that_come_first_are_there() -> None:
    assert [file for file in LONG_FILES if not (REPOSITORY / file).is_file()] == []


def test_the_longest_run_first_and_those_that_share_servers_in_one_worker_in_the_listed_order() -> None:
    last = LONG_FILES[-1]
    nodes = ["tests/a.py::one", f"{last}::two", f"{FILES[2]}::three", f"{FILES[0]}::four", f"{FILES[0]}::five"]
    items: list[Any] = [SimpleNamespace(nodeid=node) for node in nodes]
    longest_first(items)
    assert [item.nodeid for item in items] == [nodes[3], nodes[4], nodes[2], nodes[1], nodes[0]]
    assert len({scope_of(node) for node in nodes}) == 3
    assert scope_of(nodes[0]) == "tests/a.py"
    assert scope_of(nodes[2]) == scope_of(nodes[3])
