"""Runs a server's module, loaded without garbage collection.

    python -m serving_bridge.vllm_plugin.quick_start MODULE ARGUMENTS

vLLM's server imports some five thousand modules, and nearly all that they make stays. Looking through it again and
again takes a fifth of the import's CPU time.
"""

from __future__ import annotations

import gc
import importlib
import runpy
import sys


def main() -> None:
    """Runs the module that the first argument names, as `python -m` would, with the arguments that follow.

    Collection is on again by then, and passes over what was imported.
    """
    module = sys.argv.pop(1)
    gc.disable()
    try:
        importlib.import_module(module)
    finally:
        gc.enable()
    gc.freeze()
    del sys.modules[module]  # else runpy warns that it runs a second time
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
