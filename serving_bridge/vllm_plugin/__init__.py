"""vLLM general plugin: weights from Weir's store into a running server; imports no JAX.

Loaded by entry point in vLLM's API server, engine core and every worker.
"""

from __future__ import annotations

import time

from serving_bridge.vllm_plugin.packed import PackedAnswer, PackedChoice, SwapAnswer

__all__ = [
    "ANY_ORDER",
    "BACKEND",
    "FURTHER_HOST",
    "KEPT_VERSIONS",
    "MIDDLEWARE",
    "MODEL_FAMILY",
    "OPTION_CHECK",
    "OPTION_VERDICT",
    "QUICK_START",
    "SCHEDULER",
    "STORE_ROOT",
    "TRAINING_SLOWDOWN",
    "USERS_BELOW",
    "USERS_KV_USAGE",
    "WORKER_EXTENSION",
    "PackedAnswer",
    "PackedChoice",
    "SwapAnswer",
    "register",
]

BACKEND = "weir"
#: what `--worker-extension-cls` needs, so that staging can be asked for while the server serves
WORKER_EXTENSION = "serving_bridge.vllm_plugin.engine.WorkerExtension"
#: what `--scheduler-cls` needs, so that weights can be proven while the server is paused
SCHEDULER = "serving_bridge.vllm_plugin.scheduler.make_scheduler"
#: what `--middleware` needs, so that nothing reaches a route without a token
MIDDLEWARE = "serving_bridge.vllm_plugin.middleware.GateMiddleware"
#: environment variable: the weight store that a server reads from, as long as it runs
STORE_ROOT = "WEIR_STORE_ROOT"
#: Environment variable with model.family, where the model is of a family from outside.
MODEL_FAMILY = "WEIR_MODEL_FAMILY"
#: environment variable: "1" where the server may be brought back to an older version, since a registry's alias names it
ANY_ORDER = "WEIR_ANY_VERSION_ORDER"
#: environment variable: how many versions beside the served one stay in host memory
KEPT_VERSIONS = "WEIR_KEPT_VERSIONS"
#: environment variable: most that a user's token may take longer beside training, as a share
TRAINING_SLOWDOWN = "WEIR_TRAINING_SLOWDOWN"
#: environment variable: requests whose priority is lower are users', the others give way to them
USERS_BELOW = "WEIR_USERS_BELOW"
#: metric of a server: share of the KV cache that users hold
USERS_KV_USAGE = "weir_users_kv_cache_usage_ratio"
#: program that runs a server's workers on a further host
FURTHER_HOST = "serving_bridge.vllm_plugin.further_host"
#: program that runs vLLM's server, loaded in less time
QUICK_START = "serving_bridge.vllm_plugin.quick_start"
#: program that says whether vLLM takes a command line, and what begins the line of its verdict
OPTION_CHECK = "serving_bridge.vllm_plugin.option_check"
OPTION_VERDICT = "weir-verdict "

_NAP_S = 1e-4


def register() -> None:
    """Registers the weight-transfer backend; harmless when called again (vLLM loads plugins many times)."""
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
    from vllm.platforms import current_platform

    if BACKEND not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(BACKEND, "serving_bridge.vllm_plugin.engine", "WeirEngine")
    if current_platform.is_cpu():
        _compute_with_the_parameters()
        _use_parameters_as_tensors()
        _wait_without_spinning()
        from serving_bridge.vllm_plugin.cache_memory import take_what_sequences_fill
        from serving_bridge.vllm_plugin.cpu_kernels import use_compiled_norms
        from serving_bridge.vllm_plugin.engine_start import fork_the_engine

        use_compiled_norms()
        take_what_sequences_fill()
        fork_the_engine()


def _compute_with_the_parameters() -> None:
    """Keeps linear layers from computing with packed copies of their weights.

    Loading in place would change the parameter and not the copy: a tied head silently goes on with the old weights.
    """
    import vllm._custom_ops as custom_ops
    import vllm.model_executor.layers.utils as layer_utils

    custom_ops._supports_onednn = False
    layer_utils.check_cpu_sgl_kernel = _never


def _use_parameters_as_tensors() -> None:
    """Spares every use of a parameter a call into Python.

    vLLM's parameters define `__torch_function__` only to call that of torch's own, which does nothing; where it is
    torch's own, torch does not call it.
    """
    import torch
    from vllm.model_executor.parameter import BasevLLMParameter

    BasevLLMParameter.__torch_function__ = torch.nn.Parameter.__torch_function__


def _never(*_: object) -> bool:
    return False


def _wait_without_spinning() -> None:
    """Has engine core and worker sleep a little between looks while they wait for each other.

    vLLM's default, `sched_yield` in a loop, suits GPUs; here both would take cores from the model and the learner.
    Going to vLLM's own idle mode at once instead is no way out: its wake-ups are lost when they follow within about a
    millisecond, and the reader then sleeps for seconds.
    """
    import vllm.distributed.device_communicators.shm_broadcast as shm_broadcast

    shm_broadcast.sched_yield = _nap


def _nap() -> None:
    time.sleep(_NAP_S)
