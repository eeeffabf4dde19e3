"""vLLM's server from outside: how it is started, asked and believed."""

from serving_bridge.vllm.answers import (
    Aborted,
    Completion,
    Failed,
    Full,
    Malformed,
    Rejected,
    ReplicaError,
    Superseded,
    joined,
    version_named,
)
from serving_bridge.vllm.client import DEFERRED, USERS_KV_USAGE, VllmClient
from serving_bridge.vllm.control import RoundControl, Swapped
from serving_bridge.vllm.option_check import EngineArgsError, check_engine_args
from serving_bridge.vllm.server_checks import (
    Platform,
    ReplicaStartError,
    check_model,
    check_plugin,
    check_private,
    claim_port,
    detect_platform,
)
from serving_bridge.vllm.server_options import (
    SERVED_MODEL_NAME,
    Access,
    further_host_command,
    server_command,
    server_environment,
)
from serving_bridge.vllm.transport import QUEUE_FULL, Session, http_session
from serving_bridge.vllm.worker_status import WorkerStatus

__all__ = [
    "DEFERRED",
    "QUEUE_FULL",
    "SERVED_MODEL_NAME",
    "USERS_KV_USAGE",
    "Aborted",
    "Access",
    "Completion",
    "EngineArgsError",
    "Failed",
    "Full",
    "Malformed",
    "Platform",
    "Rejected",
    "ReplicaError",
    "ReplicaStartError",
    "RoundControl",
    "Session",
    "Superseded",
    "Swapped",
    "VllmClient",
    "WorkerStatus",
    "check_engine_args",
    "check_model",
    "check_plugin",
    "check_private",
    "claim_port",
    "detect_platform",
    "further_host_command",
    "http_session",
    "joined",
    "server_command",
    "server_environment",
    "version_named",
]
