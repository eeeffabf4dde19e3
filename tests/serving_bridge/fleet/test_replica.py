"""A replica starts with the right flags or says why it can't; the client takes nothing but sound answers."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import numpy as np
import pytest
from aiohttp import web

from serving_bridge.fleet.replica import Replica
from serving_bridge.processes.guard import descendants
from serving_bridge.processes.logs import log_tail
from serving_bridge.settings.serving import ServingSettings
from serving_bridge.vllm import server_checks
from serving_bridge.vllm.client import (
    Aborted,
    Completion,
    Failed,
    Malformed,
    Rejected,
    ReplicaError,
    Unreachable,
    Unversioned,
    VllmClient,
)
from serving_bridge.vllm.server_checks import (
    ReplicaStartError,
    check_model,
    check_plugin,
    check_private,
    claim_port,
    detect_platform,
)
from serving_bridge.vllm.server_options import Access, server_command, server_environment
from serving_bridge.vllm_plugin import PackedAnswer, PackedChoice

SETTINGS = ServingSettings(max_model_len=64, max_num_seqs=8, start_timeout_s=300, engine_args={"seed": 5})

ACCESS = Access("http://127.0.0.1:1", "c" * 64, "i" * 64, store="/w")


def option(command: list[str], name: str) -> str:
    return command[command.index(name) + 1]


def test_flags_on_the_cpu():
    command = server_command(Path("/m"), SETTINGS, "cpu", 1234)
    assert option(command, "--model") == "/m"
    assert option(command, "--port") == "1234"
    assert option(command, "--logprobs-mode") == "processed_logprobs"
    assert json.loads(option(command, "--weight-transfer-config")) == {"backend": "weir"}
    assert option(command, "--kv-cache-memory-bytes") == str(1 << 30)
    assert int(option(command, "--max-num-batched-tokens")) >= SETTINGS.max_model_len
    assert {"--enable-scale-out", "--enforce-eager", "--no-enable-chunked-prefill"} <= set(command)
    assert "--gpu-memory-utilization" not in command
    assert command[-1] == "--seed=5"
    environment = server_environment({"HOME": "/h"}, SETTINGS, "cpu", ACCESS, Path("/s"))
    assert environment["HOME"] == "/h"
    assert environment["VLLM_SERVER_DEV_MODE"] == environment["HF_HUB_OFFLINE"] == "1"
    assert environment["OMP_NUM_THREADS"] == str(SETTINGS.threads)


def test_the_only_worker_on_the_cpu_is_the_engine_itself():
    inside = "vllm.v1.executor.uniproc_executor.UniProcExecutor"
    assert option(server_command(Path("/m"), SETTINGS, "cpu", 1), "--distributed-executor-backend") == inside
    several = [{"tensor_parallel_size": 2}, {"pipeline_parallel_size": 2}]
    for changes in several:
        command = server_command(Path("/m"), SETTINGS.model_copy(update=changes), "cpu", 1)
        assert "--distributed-executor-backend" not in command
    assert "--distributed-executor-backend" not in server_command(Path("/m"), SETTINGS, "gpu", 1)


def test_flags_on_a_gpu():
    settings = ServingSettings(
        max_model_len=64, gpu_memory_utilization=0.5, tensor_parallel_size=4, enforce_eager=False, dtype="bfloat16"
    )
    command = server_command(Path("/m"), settings, "gpu", 1234)
    assert option(command, "--gpu-memory-utilization") == "0.5"
    assert option(command, "--tensor-parallel-size") == "4"
    assert option(command, "--dtype") == "bfloat16"
    assert not {"--enforce-eager", "--no-enable-chunked-prefill", "--kv-cache-memory-bytes"} & set(command)
    environment = server_environment({}, settings, "gpu", ACCESS, Path("/s"))
    assert environment["VLLM_SERVER_DEV_MODE"] == "1"
    assert not {"OMP_NUM_THREADS", "TORCH_COMPILE_DISABLE", "VLLM_CPU_OMP_THREADS_BIND"} & set(environment)


@pytest.mark.parametrize(
    ("installed", "devices", "platform"),
    [
        ({"vllm-cpu": "0.32.0"}, ("/dev/null",), "cpu"),
        ({"vllm": "0.33.0"}, ("/dev/null",), "gpu"),
        ({"vllm": "0.33.0"}, ("/no/such/device",), "cpu"),
        ({"vllm": "0.33.0+cpu"}, ("/dev/null",), "cpu"),
    ],
)
def test_platform_follows_what_is_installed(monkeypatch: pytest.MonkeyPatch, installed, devices, platform):
    monkeypatch.setattr(server_checks, "_version", installed.get)
    monkeypatch.setattr(server_checks, "_ACCELERATORS", devices)
    assert detect_platform() == platform


def test_missing_vllm_or_plugin_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(server_checks, "_version", lambda name: None)
    with pytest.raises(ReplicaStartError, match=r"vLLM is not installed .* pip install 'weir\[serving\]'"):
        detect_platform()
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: [])
    with pytest.raises(ReplicaStartError, match=r"would not find the 'weir' plugin.*pip install -e"):
        check_plugin()


def test_a_model_folder_needs_a_tokenizer(tmp_path: Path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ReplicaStartError, match=r"holds no tokenizer.json"):
        check_model(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    check_model(tmp_path)


@pytest.mark.parametrize("host", ["0.0.0.0", "8.8.8.8", "::"])
def test_public_addresses_are_refused(host: str):
    with pytest.raises(ReplicaStartError, match="loopback or private"):
        check_private(host)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "10.1.2.3"])
def test_private_addresses_are_taken(host: str):
    check_private(host)


def test_a_taken_port_is_refused_and_zero_picks_a_free_one():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ReplicaStartError, match=rf"can't bind 127.0.0.1:{port}: .*set serving.port"):
            claim_port("127.0.0.1", port)
        assert claim_port("127.0.0.1", 0) not in (0, port)


def test_log_tail_starts_where_this_run_started(tmp_path: Path):
    path = tmp_path / "log"
    path.write_text("old\n")
    start = path.stat().st_size
    with path.open("a") as log:
        log.writelines(f"line {index}\n" for index in range(40))
    lines = log_tail(path, start).splitlines()
    assert lines[-1] == "line 39"
    assert "old" not in lines
    assert len(lines) < 40


def start_and_fail(folder: Path, settings: ServingSettings) -> tuple[str, Replica]:
    """Starts a real vLLM on a folder that it can't serve; returns the error and the replica."""
    pytest.importorskip("vllm", reason="vLLM is not installed")
    config = {"architectures": ["NoSuchModel"], "model_type": "no_such_type"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text("{}")

    async def start() -> tuple[str, Replica]:
        async with aiohttp.ClientSession() as session:
            replica = Replica("replica-0", folder, settings, session, log_path=folder / "log")
            with pytest.raises(ReplicaStartError) as caught:
                await replica.start()
            return str(caught.value), replica

    return asyncio.run(start())


@pytest.mark.parametrize(
    "module",
    [
        pytest.param("serving_bridge.no_such_type", id="no server at all"),
        pytest.param(SETTINGS.server_module, id="vLLM", marks=pytest.mark.soak),
    ],
)
def test_a_server_that_ends_while_starting_is_reported_with_its_log(tmp_path: Path, module: str):
    error, _ = start_and_fail(tmp_path, SETTINGS.model_copy(update={"server_module": module}))
    assert "ended with status 1 while starting" in error
    assert "no_such_type" in error, "the end of the log belongs into the error"


def test_a_server_that_takes_too_long_is_reported_and_stopped(tmp_path: Path):
    before = set(descendants(os.getpid()))
    error, _ = start_and_fail(tmp_path, SETTINGS.model_copy(update={"start_timeout_s": 0.5}))
    assert "serving.start_timeout_s = 0.5 s" in error
    assert f"end of {tmp_path / 'log'}:" in error, "what it said so far belongs into the error, too"
    assert set(descendants(os.getpid())) <= before


def answer(**changes: Any) -> bytes:
    """An answer as the plugin packs it, with one choice of three tokens."""
    given = {"tokens": [7, 8, 1], "logprobs": [-3.5, -4.0, -0.5], "spans": [("4", 0, 2), ("5", 2, 3)]} | changes
    choice = PackedChoice(
        index=0,
        finish_reason=given.get("finish_reason", "stop"),
        tokens=np.array(given["tokens"], "<i4").tobytes(),
        logprobs=np.array(given["logprobs"], "<f4").tobytes(),
        spans=given["spans"],
    )
    return msgspec.msgpack.encode(PackedAnswer([choice]))


async def _generate(reply: web.Response | None, delay_s: float = 0.0) -> tuple[list[Completion], dict[str, Any]]:
    """Sends one request to a server on the loopback that gives `reply`; returns completions and the request body."""
    bodies: list[dict[str, Any]] = []

    async def handle(request: web.Request) -> web.Response:
        bodies.append(await request.json())
        await asyncio.sleep(delay_s)
        assert reply is not None
        return reply

    app = web.Application()
    app.router.add_post("/inference/v1/generate", handle)
    server = web.AppRunner(app)
    await server.setup()
    try:
        site = web.TCPSite(server, "127.0.0.1", 0)
        await site.start()
        port = server.addresses[0][1]
        async with aiohttp.ClientSession() as session:
            client = VllmClient(f"http://127.0.0.1:{port}", session)
            completions = await client.generate(
                [2, 3], n=1, max_tokens=3, stop_token_ids=[1], timeout_s=0.3, temperature=0.5, seed=9
            )
            return completions, bodies[0]
    finally:
        await server.cleanup()


def generate(reply: Any, status: int = 200, delay_s: float = 0.0) -> tuple[list[Completion], dict[str, Any]]:
    body = reply if isinstance(reply, bytes) else msgspec.json.encode(reply)
    work: Coroutine[Any, Any, tuple[list[Completion], dict[str, Any]]] = _generate(
        web.Response(body=body, status=status, content_type="application/json"), delay_s
    )
    return asyncio.run(work)


def test_a_sound_answer_is_expanded_token_by_token():
    (completion,), body = generate(answer())
    assert completion.tokens.tolist() == [7, 8, 1]
    assert completion.logprobs.tolist() == [-3.5, -4.0, -0.5]
    assert completion.policy_version.tolist() == [4, 4, 5]
    assert [str(array.dtype) for array in (completion.tokens, completion.logprobs, completion.policy_version)] == [
        "int32",
        "float32",
        "int32",
    ]
    assert completion.finish_reason == "stop"
    assert body["token_ids"] == [2, 3]
    sent = body["sampling_params"]
    assert (sent["temperature"], sent["seed"], sent["stop_token_ids"], sent["max_tokens"]) == (0.5, 9, [1], 3)


@pytest.mark.parametrize(
    ("reply", "error", "message"),
    [
        (answer(finish_reason="abort"), Aborted, "aborted after 3 tokens"),
        (answer(spans=[("default", 0, 3)]), Unversioned, "'default'"),
        (answer(spans=[("4", 0, 1), ("5", 2, 3)]), Malformed, "span 2-3 does not follow token 1"),
        (answer(spans=[("4", 0, 2), ("5", 1, 3)]), Malformed, "span 1-3 does not follow token 2"),
        (answer(spans=[("4", 0, 2)]), Malformed, "cover 2 of 3 tokens"),
        (answer(spans=[("4", 0, 4)]), Malformed, "span 0-4"),
        (answer(spans=[]), Malformed, "cover 0 of 3"),
        (answer(tokens=[7, 8]), Malformed, "log-probs of 3 tokens don't belong to its 2 tokens"),
        (answer(logprobs=[]), Malformed, "log-probs of 0 tokens"),
        (answer(finish_reason="error"), Malformed, "finish reason 'error'"),
        (msgspec.msgpack.encode(PackedAnswer([])), Malformed, "sent 0 answers, expected 1"),
        (b"{", Malformed, "can't be read"),
    ],
)
def test_an_unsound_answer_is_never_a_sample(reply: Any, error: type[ReplicaError], message: str):
    with pytest.raises(error, match=message) as caught:
        generate(reply)
    assert caught.value.retryable == (error in (Aborted, Unversioned))


@pytest.mark.parametrize(
    ("status", "error", "retryable"), [(400, Rejected, False), (500, Failed, True), (503, Failed, True)]
)
def test_error_statuses_say_whether_to_try_again(status: int, error: type[ReplicaError], retryable: bool):
    with pytest.raises(error, match=f"{status} too odd") as caught:
        generate({"error": {"message": "too odd"}}, status)
    assert caught.value.retryable == retryable


def test_no_answer_in_time_and_no_server_are_unreachable():
    with pytest.raises(Unreachable, match="no answer within 0.3 s") as caught:
        generate(answer(), delay_s=1.0)
    assert caught.value.retryable

    async def nowhere() -> None:
        async with aiohttp.ClientSession() as session:
            await VllmClient(f"http://127.0.0.1:{claim_port('127.0.0.1', 0)}", session).weight_version()

    with pytest.raises(Unreachable, match="Cannot connect"):
        asyncio.run(nowhere())


def test_no_token_follows_a_redirect_to_another_address():
    seen: list[str] = []

    async def run() -> None:
        async def elsewhere(request: web.Request) -> web.Response:
            seen.append(request.path)
            return web.Response(status=307, headers={"Location": "/stolen"})

        app = web.Application()
        app.router.add_route("*", "/{path:.*}", elsewhere)
        server = web.AppRunner(app)
        await server.setup()
        try:
            await web.TCPSite(server, "127.0.0.1", 0).start()
            async with aiohttp.ClientSession() as session:
                client = VllmClient(f"http://127.0.0.1:{server.addresses[0][1]}", session, token="t" * 64)
                with pytest.raises(Rejected, match="307"):
                    await client.weight_version()
        finally:
            await server.cleanup()

    asyncio.run(run())
    assert seen == ["/weight_info"]
