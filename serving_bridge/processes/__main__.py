"""Runs the guard, wherever Weir is installed: `python -m serving_bridge.processes [--grace SECONDS] -- COMMAND...`."""

import sys

from serving_bridge.processes.guard import main

if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
