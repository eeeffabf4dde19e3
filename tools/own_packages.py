"""Weir's packages before those of the working folder, which may hold a user's `rewards.py`, `configs/` or `tools/`."""

from __future__ import annotations

import os
import sys

#: The folder that Weir's packages lie in.
_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def own_packages_first() -> None:
    """Moves the working folder to the end of `sys.path`, and puts the folder of a checkout at its beginning."""
    here = os.getcwd()
    if here != _ROOT and sys.path and sys.path[0] in ("", here) and not sys.flags.safe_path:
        sys.path.append(sys.path.pop(0))
    if _ROOT not in sys.path:
        sys.path.insert(0, _ROOT)
