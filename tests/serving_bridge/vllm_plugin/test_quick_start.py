"""A server's module is run as `python -m` would, after an import in which nothing is collected."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from serving_bridge.processes import python_module, with_own_packages
from serving_bridge.vllm_plugin import QUICK_START

HEAVY = """
import gc
collects_at_import = gc.isenabled()
"""
MODULE = """
import gc, json, sys
import heavy
if __name__ == "__main__":
    print(json.dumps({
        "collects_at_import": heavy.collects_at_import,
        "collects": gc.isenabled(),
        "passed_over": gc.get_freeze_count() > 1000,
        "arguments": sys.argv[1:],
        "name": __spec__.name,
        "main": sys.modules["__main__"].__dict__ is globals(),
    }))
"""


def test_the_module_runs_with_its_arguments_and_collects_only_then(tmp_path: Path) -> None:
    (tmp_path / "heavy.py").write_text(HEAVY)
    (tmp_path / "own_server.py").write_text(MODULE)
    environment = with_own_packages({"PYTHONPATH": str(tmp_path), "PATH": os.environ["PATH"]})
    command = [*python_module(QUICK_START), "own_server", "--model", "/m"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert json.loads(done.stdout) == {
        "collects_at_import": False,
        "collects": True,
        "passed_over": True,
        "arguments": ["--model", "/m"],
        "name": "own_server",
        "main": True,
    }


def test_a_module_that_is_not_there_is_named() -> None:
    command = [sys.executable, "-m", QUICK_START, "no.such.server"]
    done = subprocess.run(command, env=with_own_packages(dict(os.environ)), capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert done.stderr.splitlines()[-1] == "ModuleNotFoundError: No module named 'no'"
