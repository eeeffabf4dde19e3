"""The program of a SLURM job in tests: three steps; one is asked to end, one fails, one is ended at once.

python -m tests.support.slurm_steps_program CONFIG FOLDER
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from configs.load import load_config
from serving_bridge.processes import Supervisor
from tests.support.whole_jobs import wait_for
from tools.assembly import run_paths
from tools.launch.slurm import SlurmPlacement

#: notes its node, address and end; SIGTERM is a request
ASKED = """
import os, pathlib, signal, sys, time
def end(number, frame):
    place.with_suffix(".asked").write_text("")
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
place = pathlib.Path(sys.argv[1])
place.write_text(" ".join([os.environ["SLURMD_NODENAME"], sys.argv[2], os.environ["JUDGE_API_KEY"], str(os.getpid())]))
while True:
    time.sleep(0.1)
"""
STUBBORN = ASKED.replace("signal.signal(signal.SIGTERM, end)", "signal.signal(signal.SIGTERM, signal.SIG_IGN)")


def main() -> None:
    config, folder = load_config(sys.argv[1]), Path(sys.argv[2])
    place = SlurmPlacement(config, run_paths(config), address="127.0.0.1")

    def step(host: int, text: str, name: str) -> list[str]:
        command = [sys.executable, "-c", text, str(folder / name), "{address}"]
        return place.put("rollout", host, command, grace_s=20)

    with Supervisor(folder, lambda *_, **__: None, also=["JUDGE"]) as supervisor:

        def start(name: str, host: int, text: str) -> None:
            command = step(host, text, name)
            supervisor.start_group(name, lambda: [command], grace_s=20, stop_signal=place.stop_signal)

        start("asked", 0, ASKED)
        start("stubborn", 1, STUBBORN)
        start("failed", 0, "raise SystemExit(78)")
        for name in ("asked", "stubborn"):
            wait_for(lambda name=name: (folder / name).exists(), timeout_s=60, what=name)
        started = time.monotonic()
        supervisor.ask_to_stop("asked")
        wait_for(lambda: supervisor.has_finished("asked"), timeout_s=30, what="the end of a step that was asked")
        children = {name: supervisor._groups[name].children[0].process for name in ("failed", "stubborn")}
        wait_for(lambda: children["failed"].poll() is not None, timeout_s=30, what="the end of a step that failed")
        asked_s = time.monotonic() - started
        children["stubborn"].kill()
        wait_for(
            lambda: children["stubborn"].poll() is not None, timeout_s=30, what="the end of a step that was killed"
        )
        found = {name: child.poll() for name, child in children.items()}
    (folder / "found.json").write_text(json.dumps(found | {"asked_s": asked_s}))


if __name__ == "__main__":
    main()
