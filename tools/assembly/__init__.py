"""Builds the parts of a run from its configuration, checks them, and says what would be started."""

from tools.assembly.before_start import PreflightError, looked, preflight
from tools.assembly.dry_run import show_dry_run
from tools.assembly.garbage import collect_garbage_less_often
from tools.assembly.metrics import learner_metrics_writer, metrics_log
from tools.assembly.new_model import CreateModelError, create_model
from tools.assembly.processes import Planned, fresh_coordinator, learner_commands, planned
from tools.assembly.run_directory import Start
from tools.assembly.wiring import RunPaths

__all__ = [
    "CreateModelError",
    "Planned",
    "PreflightError",
    "RunPaths",
    "Start",
    "collect_garbage_less_often",
    "create_model",
    "fresh_coordinator",
    "learner_commands",
    "learner_metrics_writer",
    "looked",
    "metrics_log",
    "planned",
    "preflight",
    "show_dry_run",
]
