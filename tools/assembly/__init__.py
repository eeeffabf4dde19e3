"""Builds the parts of a run from its configuration, checks them, and says what would be started."""

from tools.assembly.arguments import config_arguments, name_argument, profile_argument, read_arguments
from tools.assembly.base_model import base_model_dir, base_model_path, make_model, start_model_dir
from tools.assembly.before_start import PreflightError, looked, preflight
from tools.assembly.build import (
    anew_calls,
    build_arm_replicas,
    build_copies,
    build_encoder,
    build_hold,
    build_keys,
    build_online_queue,
    build_pace,
    build_publisher,
    build_queue,
    build_registry,
    build_serving_registry,
    build_store,
    build_task,
    learner_source,
    record_limits,
    traced,
)
from tools.assembly.data_survey import DataSurvey, survey_data
from tools.assembly.dry_run import show_dry_run
from tools.assembly.error_exit import DISK_STATUS, clear_errors
from tools.assembly.fallback import fallback_of
from tools.assembly.fetched import Fetched, checkpoint_here, model_here
from tools.assembly.garbage import collect_garbage_less_often
from tools.assembly.metrics import learner_metrics_writer, metrics_log
from tools.assembly.monitoring import TARGETS_FOLDER, watched
from tools.assembly.new_model import CreateModelError, create_model
from tools.assembly.paths import (
    RunPaths,
    database_of,
    in_directory,
    locks,
    make_private_directory,
    run_paths,
    save_for_all,
    working,
)
from tools.assembly.placement import Here, Placement, fleets_of, hosts_of, in_role, python_of, variables_to_hand_on
from tools.assembly.processes import Planned, fresh_coordinator, learner_commands, planned, warm_start_commands
from tools.assembly.recorded_sessions import SESSIONS, opened_recordings, recordings_of
from tools.assembly.run_directory import Start, saved_config
from tools.assembly.start_checks import subject_of
from tools.assembly.stop_request import StopRequest
from tools.assembly.worker_hold import WorkerHold, wait_while_held

__all__ = [
    "DISK_STATUS",
    "SESSIONS",
    "TARGETS_FOLDER",
    "CreateModelError",
    "DataSurvey",
    "Fetched",
    "Here",
    "Placement",
    "Planned",
    "PreflightError",
    "RunPaths",
    "Start",
    "StopRequest",
    "WorkerHold",
    "anew_calls",
    "base_model_dir",
    "base_model_path",
    "build_arm_replicas",
    "build_copies",
    "build_encoder",
    "build_hold",
    "build_keys",
    "build_online_queue",
    "build_pace",
    "build_publisher",
    "build_queue",
    "build_registry",
    "build_serving_registry",
    "build_store",
    "build_task",
    "checkpoint_here",
    "clear_errors",
    "collect_garbage_less_often",
    "config_arguments",
    "create_model",
    "database_of",
    "fallback_of",
    "fleets_of",
    "fresh_coordinator",
    "hosts_of",
    "in_directory",
    "in_role",
    "learner_commands",
    "learner_metrics_writer",
    "learner_source",
    "locks",
    "looked",
    "make_model",
    "make_private_directory",
    "metrics_log",
    "model_here",
    "name_argument",
    "opened_recordings",
    "planned",
    "preflight",
    "profile_argument",
    "python_of",
    "read_arguments",
    "record_limits",
    "recordings_of",
    "run_paths",
    "save_for_all",
    "saved_config",
    "show_dry_run",
    "start_model_dir",
    "subject_of",
    "survey_data",
    "traced",
    "variables_to_hand_on",
    "wait_while_held",
    "warm_start_commands",
    "watched",
    "working",
]
