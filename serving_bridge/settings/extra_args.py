"""Which further arguments vLLM's server may be given: those of its speed, none that open, name or load anything."""

from __future__ import annotations

import re
from collections.abc import Sequence

VLLM_MODULE = "vllm.entrypoints.openai.api_server"

#: with and without "no-" before it
# fmt: off
ALLOWED = frozenset((
    "all2all-backend", "async-scheduling", "attention-backend", "attention-config", "block-size",
    "compilation-config", "cpu-offload-gb", "cudagraph-capture-sizes", "cudagraph-metrics",
    "dbo-decode-token-threshold", "dbo-prefill-token-threshold", "decode-context-parallel-size",
    "disable-cascade-attn", "disable-custom-all-reduce", "disable-hybrid-kv-cache-manager", "disable-log-stats",
    "distributed-timeout-seconds", "enable-batch-sharded-sampling", "enable-chunked-prefill", "enable-dbo",
    "enable-eplb", "enable-expert-parallel", "enable-flashinfer-autotune", "enable-logging-iteration-details",
    "enable-mfu-metrics", "enable-prefix-caching", "eplb-config", "expert-placement-strategy",
    "gdn-prefill-backend", "kernel-config", "kv-cache-dtype", "kv-cache-metrics", "kv-sharing-fast-prefill",
    "language-model-only", "linear-backend", "long-prefill-token-threshold", "mamba-backend", "mamba-block-size",
    "mamba-cache-dtype", "mamba-cache-mode", "mamba-ssm-cache-dtype", "max-cudagraph-capture-size", "max-logprobs",
    "max-num-batched-tokens", "max-num-scheduled-tokens", "max-parallel-loading-workers", "moe-backend",
    "num-gpu-blocks-override", "numa-bind", "numa-bind-cpus", "numa-bind-nodes", "optimization-level",
    "performance-mode", "pipeline-parallel-size", "prefix-caching-hash-algo", "safetensors-load-strategy",
    "scheduler-reserve-full-isl", "seed", "skip-mm-profiling", "stream-interval", "ubatch-size", "use-fp64-gumbel",
    "use-tqdm-on-load",
))
# fmt: on
#: of any server, another module's too, since the replica starter sets them or they would open it
# fmt: off
_GUARDED = (
    "allowed-headers", "allowed-methods", "allowed-origins", "api-key", "config", "data-parallel-address", "dtype",
    "enable-scale-out", "grpc", "grpc-port", "host", "max-model-len", "max-num-seqs", "middleware", "model", "port",
    "root-path", "scheduler-cls", "served-model-name", "shutdown-timeout", "ssl-certfile", "ssl-keyfile",
    "tensor-parallel-size", "uds", "weight-transfer-config", "worker-cls", "worker-extension-cls",
)
# fmt: on
_OPTIMIZATION = re.compile(r"-O=?[0-9]|-O")


def option_names(arguments: Sequence[str]) -> list[str]:
    """Names of the options among arguments, as argparse reads them: without dashes in front, value and key."""
    found = []
    for argument in arguments:
        if argument.startswith("--"):
            found.append(re.split(r"[=.]", argument[2:], maxsplit=1)[0].replace("_", "-"))
        elif _OPTIMIZATION.fullmatch(argument):
            found.append("optimization-level")
        elif re.fullmatch(r"-[^0-9.].*|-", argument):
            found.append(argument)
    return found


def check_extra_args(arguments: Sequence[str], module: str) -> None:
    """Raises `ValueError` for an argument that the server `module` must not be given."""
    names = option_names(arguments)
    if arguments and not arguments[0].startswith("-"):
        raise ValueError(f"serving.extra_args begins with {arguments[0]!r}, expected an option such as --seed")
    for name in names:
        if module != VLLM_MODULE:
            # argparse takes every unambiguous beginning of a name for the name.
            if name.startswith("-") or any(guarded.startswith(name) for guarded in _GUARDED):
                raise ValueError(f"serving.extra_args has {name!r}, which is, or may be read as, one that Weir sets")
        elif name.removeprefix("no-") not in ALLOWED:
            raise ValueError(
                f"serving.extra_args has {name!r}, expected names of vLLM's options for speed, written out: "
                f"{', '.join(sorted(ALLOWED))}"
            )
