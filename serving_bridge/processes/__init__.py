"""Child processes: guarded, restarted, alone at their task, and without the parent's secrets."""

from serving_bridge.processes.environment import child_environment, is_secret, process_environment
from serving_bridge.processes.guard import GuardedProcess, GuardError, guarded
from serving_bridge.processes.journal import Journal, LeftJournal, left_journals
from serving_bridge.processes.lock import sole, wait_until_free
from serving_bridge.processes.logs import log_tail
from serving_bridge.processes.ports import free_port
from serving_bridge.processes.private_folder import PrivateFolder, PrivateFolderError, base_folder
from serving_bridge.processes.python import python_module, with_own_packages
from serving_bridge.processes.restarts import RestartBudget
from serving_bridge.processes.supervisor import ProcessFailedError, Supervisor

__all__ = [
    "GuardError",
    "GuardedProcess",
    "Journal",
    "LeftJournal",
    "PrivateFolder",
    "PrivateFolderError",
    "ProcessFailedError",
    "RestartBudget",
    "Supervisor",
    "base_folder",
    "child_environment",
    "free_port",
    "guarded",
    "is_secret",
    "left_journals",
    "log_tail",
    "process_environment",
    "python_module",
    "sole",
    "wait_until_free",
    "with_own_packages",
]
