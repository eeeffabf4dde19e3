"""How far a run has come, in a line."""

from __future__ import annotations

from configs.load import load_config
from learner_jax.runtime import printable
from serving_bridge.telemetry import read_metrics
from tools.assembly import RunPaths


def progress_line(paths: RunPaths) -> str:
    """Steps done, phase, and whether the run has finished."""
    config = load_config(paths.config)
    events = read_metrics(paths.metrics) if paths.metrics.exists() else []
    step = max((event["step"] for event in events if event["event"] == "step"), default=0)
    phases = [event["name"] for event in events if event["event"] == "phase"]
    restarts = sum(event["event"] == "restart" for event in events)
    if (paths.directory / "summary.json").exists():
        phases = ["finished"]
    said = f"run {config.run.name}: step {step} of {config.learner.steps}, {phases[-1] if phases else 'not begun'}"
    return printable(said + (f", {restarts} restarts of processes" if restarts else ""))
