"""Says what it was started with, and ends as it is told: python -m tests.support.told_process STATUS [SECONDS]."""

from __future__ import annotations

import json
import os
import random
import sys
import tempfile
import time
import warnings


def main() -> None:
    told = {
        "arguments": sys.argv[1:],
        "cwd": os.getcwd(),
        "environment": dict(os.environ),
        "temporary": tempfile.gettempdir(),
        "random": random.random(),
        "pid": os.getpid(),
        "group": os.getpgid(0),
        "descriptors": len(os.listdir("/proc/self/fd")),
        "imported": "jax" in sys.modules,
    }
    print(json.dumps(told), flush=True)
    time.sleep(float(sys.argv[2]) if len(sys.argv) > 2 else 0.0)
    if sys.argv[1] == "warn":
        warnings.warn("as an error", stacklevel=1)
    raise SystemExit(int(sys.argv[1]))


if __name__ == "__main__":
    main()
