"""vLLM's engine as a fork of its API server."""

from __future__ import annotations

import signal
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from serving_bridge.vllm_plugin import engine_start

FORK = """
import json, os, signal, socket
from serving_bridge.vllm_plugin.engine_start import _fork_context

listener = socket.create_server(("127.0.0.1", 0))
ours, theirs = socket.socketpair()
reading, writing = os.pipe()
woken, wakes = socket.socketpair()
wakes.setblocking(False)
signal.set_wakeup_fd(wakes.fileno())

def child():
    signal.signal(signal.SIGUSR1, lambda *_: None)
    os.kill(os.getpid(), signal.SIGUSR1)
    theirs.send(b"there")
    os.write(writing, b"x")
    os.read(os.open("/dev/zero", os.O_RDONLY), 1)
    signal.pause()

process = _fork_context().Process(target=child)
process.start()
os.read(reading, 1)
port = listener.getsockname()[1]
listener.close()
refused = False
try:
    socket.create_connection(("127.0.0.1", port), timeout=5).close()
except ConnectionRefusedError:
    refused = True
woken.setblocking(False)
try:
    woken.recv(1)
    disturbed = True
except BlockingIOError:
    disturbed = False
process.terminate()
process.join(30)
print(json.dumps([refused, disturbed, ours.recv(5).decode(), process.exitcode]))
"""


def test_the_engine_keeps_neither_the_servers_port_nor_its_signals() -> None:
    done = subprocess.run([sys.executable, "-c", FORK], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.strip() == f'[true, false, "there", {-signal.SIGTERM}]', done.stderr


@pytest.mark.parametrize(("threads", "forks"), [("1", True), ("2", False), (None, False)])
def test_the_engine_is_forked_where_one_thread_computes(
    monkeypatch: pytest.MonkeyPatch, threads: str | None, forks: bool
) -> None:
    stock = object()
    utils: Any = SimpleNamespace(get_mp_context=stock)
    engine = SimpleNamespace(utils=utils)
    modules: dict[str, Any] = {"vllm": SimpleNamespace(v1=SimpleNamespace(engine=engine)), "vllm.v1.engine": engine}
    for name, module in (modules | {"vllm.v1": modules["vllm"].v1, "vllm.v1.engine.utils": utils}).items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if threads is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
    for _ in range(2):
        engine_start.fork_the_engine()
        assert (utils.get_mp_context is not stock) == forks
