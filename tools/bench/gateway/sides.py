"""The processes that are measured: an engine, the gateway before it, and LiteLLM's proxy before it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import tokenizers

from serving_bridge.processes import free_port
from tools.bench import BenchmarkError
from tools.bench.gateway.deployment import cpu_of
from tools.bench.gateway.engine import TEXT

DIRECT, WEIR, GUARDED, LITELLM = "direct", "weir", "weir with guards", "litellm"
_START_S = 180.0
_KEY = "sk-benchmark"
#: as the gateway without tenants: no look-up of keys on either side
_NO_KEY = {"LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true"}
_CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True)
class Side:
    """What requests are sent to.

    Attributes:
      process: what stands before the engine; None where nothing does.
    """

    name: str
    url: str
    process: psutil.Process | None

    def cpu_s(self) -> float:
        """CPU seconds since the start, of the process and its children."""
        return 0.0 if self.process is None else cpu_of(self.process)

    def memory_bytes(self) -> int:
        """Resident memory of the process and its children."""
        if self.process is None:
            return 0
        found = (self.process, *self.process.children(recursive=True))
        return sum(process.memory_info().rss for process in found)


@contextmanager
def started(folder: Path, *, pace_ms: float, litellm: Path | None) -> Iterator[list[Side]]:
    """The sides, ready; their processes end with the block.

    Args:
      litellm: LiteLLM's program, in an environment of its own; None to leave it out.

    Raises:
      BenchmarkError: one does not start.
    """
    make_tokenizer(folder)
    with ExitStack() as stack:
        engine = stack.enter_context(engine_running(folder, pace_ms=pace_ms))
        sides = [Side(DIRECT, engine, None)]
        for name, more in ((WEIR, []), (GUARDED, ["--guards"])):
            port = free_port()
            options = ["--port", str(port), "--engine", engine, "--folder", str(folder), *more]
            process = stack.enter_context(_process(folder, name, [*_module("door"), *options], port))
            sides.append(Side(name, f"http://127.0.0.1:{port}", process))
        if litellm is not None:
            port = free_port()
            config = folder / "litellm.yaml"
            parameters = {"model": "openai/policy", "api_base": f"{engine}/v1", "api_key": _KEY}
            config.write_text(json.dumps({"model_list": [{"model_name": "policy", "litellm_params": parameters}]}))
            command = [str(litellm), "--config", str(config), "--port", str(port), "--host", "127.0.0.1"]
            process = stack.enter_context(_process(folder, "litellm", [*command, "--num_workers", "1"], port))
            sides.append(Side(LITELLM, f"http://127.0.0.1:{port}", process))
        yield sides


@contextmanager
def engine_running(folder: Path, *, pace_ms: float) -> Iterator[str]:
    """Address of an engine whose tokenizer lies in the folder; it ends with the block."""
    port = free_port()
    options = ["--port", str(port), "--pace-ms", str(pace_ms), "--tokenizer", str(folder)]
    with _process(folder, "engine", [*_module("engine"), *options], port):
        yield f"http://127.0.0.1:{port}"


@contextmanager
def bare_running(folder: Path) -> Iterator[tuple[psutil.Process, str]]:
    """A server that refuses everybody, and its address up to /v1; it ends with the block."""
    port = free_port()
    with _process(folder, "bare", [*_module("bare"), "--port", str(port)], port) as process:
        yield process, f"http://127.0.0.1:{port}/v1"


def make_tokenizer(folder: Path) -> None:
    """A tokenizer of bytes and some merges, with a chat template."""
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([TEXT], trainer)
    backend.save(str(folder / "tokenizer.json"))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 0]}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": _CHAT_TEMPLATE}))


def _module(name: str) -> list[str]:
    return [sys.executable, "-m", f"tools.bench.gateway.{name}"]


@contextmanager
def _process(folder: Path, name: str, command: list[str], port: int) -> Iterator[psutil.Process]:
    log = folder / f"{name}.log"
    environment = {**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR"} | _NO_KEY
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
    try:
        end_s = time.monotonic() + _START_S
        while not _answers(port):
            if process.poll() is not None or time.monotonic() > end_s:
                raise BenchmarkError(f"{name} does not start; the end of its log:\n{log.read_text()[-2000:]}")
            time.sleep(0.1)
        yield psutil.Process(process.pid)
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex(("127.0.0.1", port)) == 0
