"""Stands in for the program that asks vLLM about a command line: python -m tests.support.option_verdicts ARGUMENTS."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from serving_bridge.vllm_plugin import OPTION_VERDICT


def main() -> None:
    with Path(os.environ["TMPDIR"], "asked").open("a") as file:
        file.write(json.dumps(sys.argv[1:]) + "\n")
    print("a line that vLLM prints")
    if "--crash=1" in sys.argv:
        sys.exit("no such library")
    print(f"\n{OPTION_VERDICT}{json.dumps('not --seed=4' if '--seed=4' in sys.argv else '')}")


if __name__ == "__main__":
    main()
