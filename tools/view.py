"""The live view of a run: what `metrics.jsonl` says, as a picture in a terminal or as plain lines elsewhere.

    python -m tools.view runs/demo

attaches to a run that is going on (on this machine or through a shared file system) or shows one that has ended.
"""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

from configs.load import load_config
from serving_bridge.telemetry import MetricsTail
from tools.assembly import clear_errors
from tools.command_line import command_parser
from tools.reporting import LiveView

_ATTACH_TICK_S = 0.5


def attach(directory: Path, *, tick_s: float = _ATTACH_TICK_S) -> None:
    """Follows a run directory until the run has ended; Ctrl-C leaves the run alone."""
    config = load_config(directory / "config.toml")
    tail = MetricsTail(directory / "metrics.jsonl")
    with LiveView(config, directory) as view:
        while True:
            records = tail.read()
            view.update(records)
            if view.is_over:
                return
            time.sleep(tick_s)


def main() -> None:
    parser = command_parser("view", __doc__)
    parser.add_argument("run_directory", type=Path)
    with clear_errors(), contextlib.suppress(KeyboardInterrupt):
        attach(parser.parse_args().run_directory)


if __name__ == "__main__":
    main()
