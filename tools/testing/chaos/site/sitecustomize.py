"""Imported by every Python process of a chaos job: gives it a wall clock that can be told to be wrong.

The task's library is imported without those of its generators that no job uses: SymPy and Matplotlib, which they bring
along, are a second of every start of a learner or worker.
WEIR_CHAOS_CLOCK names a file {role: seconds}, where a role is the module that the process runs ("" stands for all).
WEIR_CHAOS_PATCH names Python code that is run in the learner first: a bug put in on purpose, which must be found.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
import types
from collections.abc import Callable

_REREAD_S = 0.02
#: packages of reasoning_gym beside `arithmetic`
_UNUSED = "algebra algorithmic arc code cognition games geometry graphs induction logic probability"


def wrong_clock(path: str, role: str, real: Callable[[], float]) -> Callable[[], float]:
    """`real` plus what the file says now."""
    read_s, offset_s = float("-inf"), 0.0

    def clock() -> float:
        nonlocal read_s, offset_s
        if time.monotonic() - read_s > _REREAD_S:
            read_s = time.monotonic()
            try:
                with open(path) as file:
                    told = json.load(file)
                offset_s = float(told.get("", 0.0)) + float(told.get(role, 0.0))
            except FileNotFoundError:
                offset_s = 0.0
        return real() + offset_s

    return clock


def _role() -> str:
    arguments = sys.orig_argv
    return arguments[arguments.index("-m") + 1] if "-m" in arguments[:-1] else ""


if "WEIR_CHAOS_JOB" in os.environ:
    gc.set_threshold(50_000, 50, 50)  # imports make much that stays: looking through it is a tenth of a start
    for _name in _UNUSED.split():
        sys.modules[f"reasoning_gym.{_name}"] = types.ModuleType(f"reasoning_gym.{_name}")
if "WEIR_CHAOS_CLOCK" in os.environ:
    time.time = wrong_clock(os.environ["WEIR_CHAOS_CLOCK"], _role(), time.time)
if "WEIR_CHAOS_PATCH" in os.environ and _role() == "tools.learner":
    with open(os.environ["WEIR_CHAOS_PATCH"]) as _file:
        exec(compile(_file.read(), os.environ["WEIR_CHAOS_PATCH"], "exec"))
