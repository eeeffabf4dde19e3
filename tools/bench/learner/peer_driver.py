"""Runs a peer's script on a batch of ours, inside the peer's own environment.

python -P peer_driver.py --script peer_trl_step.py --batch batch.npz [--core N] -- FLAGS OF THE SCRIPT

The script's `make_batch` is replaced by one that reads the file; whatever else it does stays as it is. `--core` pins
the process before anything that counts cores is imported. `-P` keeps this folder's module names out of the peer's
imports.

Runs where Weir is not installed: NumPy and the standard library only.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

from tools.command_line import CommandParser


def main() -> None:
    parser = CommandParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--script", type=Path, required=True)
    parser.add_argument("--batch", type=Path, required=True)
    parser.add_argument("--core", type=int)
    parser.add_argument("flags", nargs="*")
    arguments = parser.parse_args()
    if arguments.core is not None:
        os.sched_setaffinity(0, {arguments.core})
    spec = importlib.util.spec_from_file_location("peer_script", arguments.script)
    if spec is None or spec.loader is None:
        sys.exit(f"{arguments.script} is no Python file")
    script: Any = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = script
    spec.loader.exec_module(script)
    if not hasattr(script, "make_batch"):
        sys.exit(f"{arguments.script} has no make_batch to replace: it would measure a batch of its own")
    with np.load(arguments.batch) as file:
        batch = {name: file[name] for name in file.files}
    script.make_batch = lambda _: dict(batch)
    sys.argv = [str(arguments.script), *arguments.flags]
    script.main()


if __name__ == "__main__":
    main()
