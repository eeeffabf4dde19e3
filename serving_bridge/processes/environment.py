"""The environment that child processes get: named variables that programs need, and no credentials of the parent."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from serving_bridge.processes.python import with_own_packages

# fmt: off
_NAMES = frozenset((
    "CONDA_PREFIX", "HOME", "LANG", "LANGUAGE", "LD_LIBRARY_PATH", "LD_PRELOAD", "LOGNAME", "PATH", "SHELL",
    "SSL_CERT_DIR", "SSL_CERT_FILE", "TEMP", "TERM", "TMP", "TMPDIR", "TZ", "USER", "VIRTUAL_ENV", "XDG_CACHE_HOME",
    "XDG_CONFIG_HOME", "XDG_DATA_HOME",
))
# fmt: on
# fmt: off
_PREFIXES = (
    "AMD_", "ASCEND_", "CLOUD_TPU_", "CUDA_", "CUDNN_", "FLASHINFER_", "GLOO_", "GOMP_", "GPU_", "HF_", "HIP_", "HSA_",
    "HUGGINGFACE_", "INDUCTOR_", "JAX_", "KMP_", "LC_", "LIBTPU_", "MALLOC_", "MEGASCALE_", "MKL_", "NCCL_", "NUMEXPR_",
    "NVIDIA_", "NVTE_", "OMP_", "OPENBLAS_", "PYTHON", "PYTORCH_", "RCCL_", "ROCM_", "ROCR_", "SLURM_", "TF_",
    "TOKENIZERS_", "TORCH", "TPU_", "TRANSFORMERS_", "TRITON_", "UCX_", "VLLM_", "WEIR_CHAOS_", "XLA_",
)
# fmt: on
#: of the processes of Weir itself, which open the queue
_OWN_PREFIXES = ("KRB5", "PG", "WEIR_")
_SECRET = re.compile(
    r"(?:^|_)(?:API_?KEYS?|AUTH|CREDENTIALS?|COOKIES?|KEYS?|PASS|PASSPHRASE|PASSWD|PASSWORDS?|PAT|PWD|SECRETS?|TOKENS?)"
    r"(?:_|$)|APIKEY|PASSWD|PASSWORD|SECRET",
    re.IGNORECASE,
)
_URL_WITH_PASSWORD = re.compile(r"://[^/\s@]*:[^/\s@]*@")
#: lets requests to vLLM's control routes carry code
_NEVER = frozenset({"VLLM_ALLOW_INSECURE_SERIALIZATION"})


def child_environment(base: Mapping[str, str], also: Iterable[str] = ()) -> dict[str, str]:
    """What of `base` a child process gets: search paths, locale, and settings of numerical libraries.

    Args:
      also: names that are handed on too, whatever they hold (serving.environment).
    """
    wanted = frozenset(also)
    return {name: value for name, value in base.items() if name in wanted or _is_harmless(name, value)}


def process_environment(base: Mapping[str, str], also: Iterable[str] = ()) -> dict[str, str]:
    """`child_environment` for Weir's own processes: with its packages, and PostgreSQL's variables and password."""
    own = (name for name in base if name.startswith(_OWN_PREFIXES))
    return with_own_packages(child_environment(base, [*also, *own]))


def is_secret(name: str, value: str) -> bool:
    """Whether a variable may hold a secret, by its name, or by a password in its URL."""
    return _SECRET.search(name) is not None or _URL_WITH_PASSWORD.search(value) is not None


def _is_harmless(name: str, value: str) -> bool:
    known = name in _NAMES or name.startswith(_PREFIXES)
    return known and name not in _NEVER and not is_secret(name, value)
