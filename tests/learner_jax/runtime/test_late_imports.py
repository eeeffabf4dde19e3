"""A module that is imported late loads at its first use, whole, and under the names that an import gives it."""

from __future__ import annotations

import importlib
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from learner_jax.runtime import import_when_used

_LOADED = "loaded_in_this_test"


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A package with two modules on the path; the names of those that were loaded."""
    package = tmp_path / "late_library"
    package.mkdir()
    for name in ("__init__", "sound", "broken"):
        (package / f"{name}.py").write_text(f"import sys\nsys.{_LOADED}.append(__name__)\nrate = 8000\n")
    with (package / "broken.py").open("a") as file:
        file.write("raise OSError('no such device')\n")
    loaded: list[str] = []
    monkeypatch.setattr(sys, _LOADED, loaded, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    yield loaded
    for name in [name for name in sys.modules if name.split(".")[0] == "late_library"]:
        del sys.modules[name]


def test_a_module_loads_at_its_first_use_and_once(library: list[str]) -> None:
    import_when_used("late_library.sound")
    package = importlib.import_module("late_library")
    sound = importlib.import_module("late_library.sound")

    assert library == ["late_library"]
    assert package.sound is sound is sys.modules["late_library.sound"]
    assert (sound.rate, package.sound.rate) == (8000, 8000)
    assert library == ["late_library", "late_library.sound"]


def test_an_import_by_name_loads_at_once(library: list[str]) -> None:
    import_when_used("late_library.sound")
    from late_library.sound import rate  # type: ignore[import-not-found]

    assert rate == 8000
    assert library == ["late_library", "late_library.sound"]


def test_what_loading_raises_the_first_use_raises(library: list[str]) -> None:
    import_when_used("late_library.broken")
    broken = importlib.import_module("late_library.broken")
    with pytest.raises(OSError, match="no such device"):
        _ = broken.rate


def test_an_import_of_what_lies_in_a_package_loads_the_package_first(library: list[str]) -> None:
    import_when_used("late_library")
    assert library == []
    importlib.import_module("late_library.sound")
    assert library == ["late_library", "late_library.sound"]


def test_threads_wait_for_the_one_that_loads(
    library: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, may_end = threading.Event(), threading.Event()
    monkeypatch.setattr(sys, "begun_in_this_test", begun, raising=False)
    monkeypatch.setattr(sys, "may_end_in_this_test", may_end, raising=False)
    text = "import sys\nearly = 1\nsys.begun_in_this_test.set()\nassert sys.may_end_in_this_test.wait(30)\nlate = 2\n"
    (tmp_path / "late_library" / "slow.py").write_text(text)
    import_when_used("late_library.slow")
    slow = importlib.import_module("late_library.slow")
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(lambda: slow.late)
        assert begun.wait(30)
        second = threads.submit(lambda: slow.late)
        may_end.set()
        assert (first.result(30), second.result(30)) == (2, 2)


def test_what_is_loaded_or_not_there_is_left_alone(library: list[str]) -> None:
    sound = importlib.import_module("late_library.sound")
    import_when_used("late_library.sound", "late_library.none", "no_such_package", "no_such_package.part")
    assert sys.modules["late_library.sound"] is sound
    for name in ("late_library.none", "no_such_package", "no_such_package.part"):
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module(name)
