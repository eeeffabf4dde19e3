"""A module that is started as a process is the one that was meant, whatever the working folder holds."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from serving_bridge.processes import python, python_module, with_own_packages
from tests.conftest import REPOSITORY


def test_a_module_of_the_working_folder_is_not_run(tmp_path: Path) -> None:
    (tmp_path / "platform.py").write_text("print('the module of the user')")
    done = subprocess.run(python_module("platform"), cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "the module of the user" not in done.stdout
    done = subprocess.run([sys.executable, "-m", "platform"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "the module of the user" in done.stdout


def test_a_checkout_comes_before_what_the_user_named_and_once() -> None:
    root = str(REPOSITORY)
    assert with_own_packages({}) == {"PYTHONPATH": root}
    environment = with_own_packages({"A": "1", "PYTHONPATH": os.pathsep.join(["/mine", root])})
    assert environment == {"A": "1", "PYTHONPATH": os.pathsep.join([root, "/mine"])}
    assert with_own_packages(environment) == environment


def test_where_weir_is_installed_nothing_is_added(tmp_path: Path) -> None:
    """The folder of installed packages must not come before the standard library."""
    package = tmp_path / "serving_bridge" / "processes"
    package.mkdir(parents=True)
    shutil.copy(python.__file__, package / "python.py")
    code = "import python; print(python.with_own_packages({'PYTHONPATH': '/mine'}), python.with_own_packages({}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=package, capture_output=True, text=True, check=True)
    assert done.stdout == "{'PYTHONPATH': '/mine'} {}\n"
