"""What `tools.train --dry-run` says: the resolved settings, the checks, and everything that would be started."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Mapping, Sequence

import tomli_w

from configs.schema import Config
from learner_jax.runtime import printable
from serving_bridge.checks import Result
from serving_bridge.storage import storage_variables
from tools.assembly import processes
from tools.assembly.before_start import PreflightError, look
from tools.assembly.paths import RunPaths

#: Variables that the processes of a job go by; others are passed on, too, and mean nothing to Weir.
_PREFIXES = ("WEIR_", "JAX_", "XLA_", "TPU_", "CUDA_", "VLLM_", "HF_", "TRANSFORMERS_", "OMP_", "PG", "SLURM_", "NCCL_")
_NAMES = ("PYTHONPATH", "PYTHONHASHSEED", "http_proxy", "https_proxy", "no_proxy", "TMPDIR")
_SECRET = ("password", "passwd", "secret", "token", "api_key", "credential")
_HIDDEN = "<hidden>"
_MARKS = {"error": "ERROR", "warning": "warning", "note": "note"}


def show_dry_run(config: Config, paths: RunPaths, *, profile_steps: int = 0) -> int:
    """Prints it all; starts nothing and writes nothing but a scratch folder that is gone at the end.

    Returns:
      Exit status: 0 if the job could start, else that of `tools.train`.
    """
    results = look("train", config, paths)
    for line in _lines(config, paths, results, profile_steps):
        print(printable(line, keep_lines=True))
    errors = [f for result in results for f in result.findings if f.severity == "error"]
    if errors:
        raise PreflightError(errors)
    print("\nnothing was started and nothing was written")
    return 0


def _lines(config: Config, paths: RunPaths, results: Sequence[Result], profile_steps: int) -> Iterator[str]:
    yield "# settings"
    yield tomli_w.dumps(redacted(config.model_dump(mode="json", exclude_none=True))).rstrip()
    yield "\n# checks"
    for result in results:
        findings = result.findings
        yield f"{result.name:<34}{'ok' if not findings else ''}".rstrip()
        for finding in findings:
            yield f"  {_MARKS[finding.severity]:<8}{finding}"
    yield "\n# would be started"
    for process in processes.planned(config, paths, profile_steps=profile_steps):
        again = f"  (started again up to {process.restarts} times an hour)" if process.restarts else ""
        yield f"{process.name}{again}"
        yield from (f"  {shlex.join(command)}" for command in process.commands)
    yield f"servers of the fleet, and one more for the evaluation at the end\n  {_servers(config)}"
    yield "\n# environment variables that they go by (names only)"
    yield "  " + (" ".join(variables(os.environ)) or "none")
    yield "\n# folders and files"
    for name, place in _places(paths):
        yield f"  {name:<14}{place}"


def _servers(config: Config) -> str:
    serving = config.serving
    last = serving.port + serving.replicas - 1
    ports = "a free port each" if not serving.port else f"ports {serving.port} to {last}"
    return f"{serving.replicas} x {serving.server_module} on {serving.host}, {ports}"


def _places(paths: RunPaths) -> list[tuple[str, object]]:
    return [
        ("run", paths.directory),
        ("queue", paths.database),
        ("payloads", paths.blobs),
        ("weights", paths.weights),
        ("checkpoints", f"{paths.checkpoints}, copied to {paths.copies}" if paths.copies else paths.checkpoints),
        ("metrics", paths.metrics),
        ("logs", paths.logs),
    ]


def variables(environment: Mapping[str, str]) -> list[str]:
    """Names of the variables that matter, in order; never a value."""
    named = storage_variables(environment).keys() | set(_NAMES)
    return sorted(name for name in environment if name.startswith(_PREFIXES) or name in named)


def redacted(tree: Mapping[str, object]) -> dict[str, object]:
    """The settings without what may be a secret: values of such names, wherever they are."""
    shown: dict[str, object] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            shown[key] = redacted(value)
        elif isinstance(value, str) and any(part in key.lower() for part in _SECRET):
            shown[key] = _HIDDEN
        else:
            shown[key] = _without_password(value)
    return shown


def _without_password(value: object) -> object:
    """A URL's password, or a command line's after --api-key, is hidden."""
    if isinstance(value, list):
        hidden = [False, *(str(item).lstrip("-").replace("-", "_") in _SECRET for item in value)][: len(value)]
        return [_HIDDEN if hide else _without_password(item) for item, hide in zip(value, hidden, strict=True)]
    if not isinstance(value, str):
        return value
    if value.startswith("--"):
        name, separator, _ = value.partition("=")
        secret = separator and name.lstrip("-").replace("-", "_") in _SECRET
        return f"{name}={_HIDDEN}" if secret else value
    scheme, separator, rest = value.partition("://")
    user, at, host = rest.rpartition("@")
    if not separator or not at or ":" not in user:
        return value
    return f"{scheme}://{user.partition(':')[0]}:{_HIDDEN}@{host}"
