"""`serving.engine_args`: the engine's own options as a table, as a command line, and those that Weir sets itself."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

VLLM_MODULE = "vllm.entrypoints.openai.api_server"

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,99}")
_REPLICAS = "replicas are separate servers: set serving.replicas"
_NETWORK = "it would open the server past the gate that asks for tokens"
_TOKENS = "a command line is seen by all users of a host: name a variable such as HF_TOKEN in serving.environment"
_DISTRIBUTION = "answers must come from the distribution that their log-probs tell of"
_HOSTS = "set serving.hosts_per_replica, and tools.launch does the rest"
_WEIGHTS = "Weir sets it, to bring new weights into the server"

#: vLLM's options that a config can't give here, and what to do instead.
OWN: Mapping[str, str] = {
    "allow-credentials": _NETWORK,
    "allowed-headers": _NETWORK,
    "allowed-methods": _NETWORK,
    "allowed-origins": _NETWORK,
    "api-key": _TOKENS,
    "api-server-count": _REPLICAS,
    "config": "write its options into serving.engine_args",
    "data-parallel-address": _REPLICAS,
    "data-parallel-backend": _REPLICAS,
    "data-parallel-external-lb": _REPLICAS,
    "data-parallel-hybrid-lb": _REPLICAS,
    "data-parallel-multi-port-external-lb": _REPLICAS,
    "data-parallel-rank": _REPLICAS,
    "data-parallel-rpc-port": _REPLICAS,
    "data-parallel-size": _REPLICAS,
    "data-parallel-size-local": _REPLICAS,
    "data-parallel-start-rank": _REPLICAS,
    "data-parallel-supervisor-port": _REPLICAS,
    "device-memory-utilization": "set serving.gpu_memory_utilization",
    "dtype": "set serving.dtype",
    "enable-scale-out": "Weir samples through the routes that it opens",
    "enable-ssl-refresh": _NETWORK,
    "enforce-eager": "set serving.enforce_eager",
    "generation-config": _DISTRIBUTION,
    "gpu-memory-utilization": "set serving.gpu_memory_utilization",
    "grpc": _NETWORK,
    "grpc-port": _NETWORK,
    "headless": _HOSTS,
    "help": "run the server by hand to read it",
    "hf-token": _TOKENS,
    "host": "set serving.host",
    "logprobs-mode": _DISTRIBUTION,
    "master-addr": _HOSTS,
    "master-port": _HOSTS,
    "max-model-len": "set serving.max_model_len",
    "max-num-seqs": "set serving.max_num_seqs",
    "middleware": _NETWORK,
    "model": "set model.path",
    "nnodes": _HOSTS,
    "node-rank": _HOSTS,
    "override-generation-config": _DISTRIBUTION,
    "pipeline-parallel-size": "set serving.pipeline_parallel_size",
    "port": "set serving.port",
    "revision": "set model.path",
    "root-path": _NETWORK,
    "runner": "Weir needs a server that generates",
    "scheduler-cls": _WEIGHTS,
    "scheduling-policy": _WEIGHTS,
    "served-model-name": "it is 'policy', the name that Weir asks for",
    "shutdown-timeout": "set serving.drain_timeout_s",
    "skip-tokenizer-init": "without a tokenizer vLLM takes ids outside the vocabulary, and ends",
    "ssl-ca-certs": _NETWORK,
    "ssl-cert-reqs": _NETWORK,
    "ssl-certfile": _NETWORK,
    "ssl-ciphers": _NETWORK,
    "ssl-keyfile": _NETWORK,
    "tensor-parallel-size": "set serving.tensor_parallel_size",
    "tokenizer": "it is read from model.path",
    "tokens-only": "Weir samples through the routes that it opens",
    "uds": _NETWORK,
    "weight-transfer-config": _WEIGHTS,
    "worker-cls": _WEIGHTS,
    "worker-extension-cls": _WEIGHTS,
}


def option_name(key: str) -> str:
    """A key of the table as the server names its option: `max_num_seqs` is `max-num-seqs`."""
    return key.replace("_", "-")


def options_of(engine_args: Mapping[str, Any]) -> dict[str, Any]:
    """The table by the names of the options."""
    return {option_name(key): value for key, value in engine_args.items()}


def command_line(engine_args: Mapping[str, Any]) -> list[str]:
    """The table as arguments: true and false are --name and --no-name, lists several values, tables JSON."""
    words: list[str] = []
    for name, value in options_of(engine_args).items():
        if isinstance(value, bool):
            words.append(f"--{name}" if value else f"--no-{name}")
        elif isinstance(value, list | tuple):
            words += [f"--{name}", *map(_word, value)]
        else:
            words.append(f"--{name}={_word(value)}")
    return words


def check_engine_args(engine_args: Mapping[str, Any]) -> None:
    """Raises `ValueError` for what no server is given: an option that Weir sets itself, or no option at all.

    The server's own parser says which of the others it knows; see `serving_bridge.vllm.option_check`.
    """
    problems = [problem for key, value in engine_args.items() for problem in _problems(key, value)]
    names = [option_name(key) for key in engine_args]
    problems += [f"{name!a} twice, with - and with _" for name in dict.fromkeys(names) if names.count(name) > 1]
    if problems:
        raise ValueError(f"serving.engine_args has {'; '.join(problems)}")


def _problems(key: str, value: Any) -> Iterator[str]:
    name = option_name(key)
    if not _NAME.fullmatch(key):
        yield f"{key[:60]!a}, expected the name of one of vLLM's options, such as seed or block-size"
    elif name.startswith("no-"):
        yield f"{key!a}: write {key[3:]} = false"
    # argparse takes every unambiguous beginning of a name for the name.
    elif name in OWN:
        yield f"{key!a}, which Weir sets or keeps shut: {OWN[name]}"
    elif owns := [own for own in OWN if own.startswith(name)]:
        yield f"{key!a}, which may be read as {owns[0]!a}: write an option's name out ({OWN[owns[0]]})"
    yield from (f"{key[:60]!a}: {problem}" for problem in _value_problems(value, inner=False))


def _value_problems(value: Any, *, inner: bool) -> Iterator[str]:
    if isinstance(value, Mapping):
        for item in value.values():
            yield from _value_problems(item, inner=True)
    elif isinstance(value, list | tuple):
        if not inner and any(isinstance(item, str) and item.startswith("-") for item in value):
            yield "a text in a list begins with -, and would be read as another option"
        for item in value:
            yield from _value_problems(item, inner=True)
    elif isinstance(value, float) and not math.isfinite(value):
        yield f"expected a finite number, got {value}"
    elif isinstance(value, str) and "\0" in value:
        yield "a text holds the character NUL"
    elif not isinstance(value, bool | int | float | str):
        yield f"expected a number, text, true, false, list or table, got {type(value).__name__}"


def _word(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
