"""Runs a server's module, loaded without garbage collection.

    python -m serving_bridge.vllm_plugin.quick_start MODULE ARGUMENTS

vLLM's server imports some five thousand modules, and nearly all that they make stays. Looking through it again and
again takes a fifth of the import's CPU time. Libraries that a server of text models never uses take one fifteenth; they
are loaded when they are used.
"""

from __future__ import annotations

import gc
import importlib
import runpy
import sys

from learner_jax.runtime import import_when_used

#: For sound, and for models in object storage.
_WHEN_USED = ("scipy.signal", "boto3")


def main() -> None:
    """Runs the module that the first argument names, as `python -m` would, with the arguments that follow.

    Collection is on again by then, and passes over what was imported.
    """
    module = sys.argv.pop(1)
    gc.disable()
    import_when_used(*_WHEN_USED)
    try:
        importlib.import_module(module)
    finally:
        gc.enable()
    gc.freeze()
    del sys.modules[module]  # else runpy warns that it runs a second time
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
