"""Attacks on a real vLLM server by who has no token, or the wrong one: nothing is done, and nothing is told."""

from __future__ import annotations

import asyncio
import json
import socket
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serving_bridge.vllm.client import Rejected, Unreachable, VllmClient
from serving_bridge.vllm_plugin.command_line import cli_args
from tests.support.weight_world import TOLERANCE, World, next_logprobs

pytest.importorskip("vllm", reason="vLLM is not installed")
pytestmark = pytest.mark.slow

GENERATE = "/inference/v1/generate"

#: one world for all tests on real servers: starting it takes longer than they do
pytest_plugins = ["tests.support.weight_fixtures"]


def netloc(world: World) -> str:
    return world.replica.base_url.removeprefix("http://")


def raw(world: World, method: str, target: str, body: bytes = b"", **headers: str | None) -> int:
    """Status of a request that is sent byte by byte as it stands, as no HTTP library would."""
    found: dict[str, str | None] = {"host": netloc(world), "content-length": str(len(body)), "connection": "close"}
    if body:
        found["content-type"] = "application/json"
    found |= {name.replace("_", "-"): value for name, value in headers.items()}
    lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in found.items() if value is not None)]
    host, _, port = netloc(world).partition(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall("\r\n".join([*lines, "", ""]).encode() + body)
        answer = b""
        while b"\r\n" not in answer and (piece := connection.recv(4096)):
            answer += piece
    return int(answer.split(b" ", 2)[1])


def bearer(world: World, role: Any = "control") -> str:
    return f"Bearer {world.keys.token(role, world.replica.base_url, world.replica.start_id)}"


def rpc(method: str, **kwargs: Any) -> bytes:
    return json.dumps({"method": method, "kwargs": kwargs}).encode()


def test_weights_and_files_are_out_of_reach_without_a_token(world: World, tmp_path: Path):
    version = world.update(world.model_a).version
    save = rpc("save_sharded_state", path=str(tmp_path))
    for target in (
        "/collective_rpc",
        "/%63ollective_rpc",
        f"http://{netloc(world)}/collective_rpc",
        "//collective_rpc",
        "/x/../collective_rpc",
        "/collective_rpc/",
        "/collective_rpc?x",
        "/collective_rpc#x",
    ):
        for kind in ("text/plain", "application/json"):
            assert raw(world, "POST", target, save, content_type=kind) == 401, target
    assert raw(world, "POST", "/collective_rpc", save, host="evil.example", authorization=bearer(world)) == 421
    assert raw(world, "POST", "/collective_rpc", save, origin="http://x", authorization=bearer(world)) == 403
    for authorization in (bearer(world, "inference"), bearer(world)):
        assert raw(world, "POST", "/collective_rpc", save, authorization=authorization) == 403
    assert list(tmp_path.iterdir()) == []
    for method in ("reload_weights", "update_environment_variables", "add_lora"):
        assert raw(world, "POST", "/collective_rpc", rpc(method), authorization=bearer(world)) == 403
    assert world.run(world.client.weight_version()) == version


def test_every_route_of_the_server_is_shut(world: World):
    """All that vLLM's own list of routes has, as its application had it before the gate."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # vLLM's own, while it is imported
        from vllm.entrypoints.launchers.app import build_app
        from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = cli_args().make_arg_parser(FlexibleArgumentParser())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_SERVER_DEV_MODE", "1")
        app = build_app(parser.parse_args(["--enable-scale-out"]), ("generate",))
    schema = app.openapi()["paths"]
    paths = [(method.upper(), path) for path, methods in schema.items() for method in methods]
    paths += [("GET", path) for path in ("/openapi.json", "/docs", "/redoc", "/metrics", "/metrics/x", "/metricsx")]
    assert len(paths) > 40
    for method, path in paths:
        status = raw(world, method, path.replace("{", "").replace("}", ""))
        assert status == (200 if path == "/health" else 401), (method, path, status)
        assert raw(world, "OPTIONS", path, origin="http://x", access_control_request_method="POST") == 403


def test_the_inference_token_samples_and_reads_metrics_and_no_more(world: World):
    version = world.update(world.model_a).version

    async def try_all() -> None:
        token = world.keys.token("inference", world.replica.base_url, world.replica.start_id)
        client = VllmClient(world.replica.base_url, world.session, token=token)
        options: dict[str, Any] = dict(n=1, max_tokens=2, stop_token_ids=[], timeout_s=60)
        (answer,) = await client.generate([5, 6], **options)
        assert set(answer.policy_version.tolist()) == {version}
        assert "vllm:num_requests_running" in await client.metrics()
        attempts = [
            client.control().pause(),
            client.control().resume(),
            client.control().abort_all(),
            client.control().name_version(99),
            client.control().start_update(),
            client.control().stage(1, "0" * 64, "mine", 60.0),
            client.worker_status(),
            client.prompt_logprobs([5, 6], timeout_s=60),
        ]
        for attempt in attempts:
            with pytest.raises(Rejected, match="403"):
                await attempt
        stale = VllmClient(world.replica.base_url, world.session, token="0" * 64)
        with pytest.raises(Unreachable, match="401 .*the server that was known has ended"):
            await stale.generate([5, 6], **options)

    world.run(try_all())
    assert not world.run(world.client.is_paused())


def test_no_request_leaves_keys_of_old_weights_behind_a_pause(world: World):
    """Asked while the engine is paused, before its weights change, and again after: a prompt longer than a block."""
    world.update(world.model_a)
    manifest = world.publish(world.model_b)
    prompt = [int(token) for token in np.random.default_rng(0).integers(2, 128, 200)]
    body = {"token_ids": prompt, "sampling_params": {"max_tokens": 1, "logprobs": 0, "detokenize": False}}
    forged = "weir-probe-dead-1-0"

    async def attack() -> tuple[list[int], np.ndarray, list[int]]:
        client = world.client
        inference = world.keys.token("inference", world.replica.base_url, world.replica.start_id)
        as_worker = {"Authorization": f"Bearer {inference}"}

        async def post(headers: dict[str, str], request_id: str | None) -> int:
            asked = body if request_id is None else body | {"request_id": request_id}
            url = f"{client.base_url}{GENERATE}"
            async with world.session.post(url, json=asked, headers=headers) as response:
                await response.read()
                return response.status

        await client.control().stage(manifest.version, manifest.content_sha256, "mine", 60.0)
        while (await client.worker_status("mine")).state == "reading":
            await asyncio.sleep(0.01)
        await client.control().start_update()
        await client.control().pause()
        refused = [await post(as_worker, forged), await post(as_worker, client.probe_ids(1)[0])]
        held = [
            asyncio.create_task(post(headers, request_id))
            for headers, request_id in (
                (as_worker | {"X-Request-Id": forged}, None),
                (as_worker | {"X-Request-Id": client.probe_ids(1)[0]}, None),
                (client.authorization, forged),
            )
        ]
        # A real probe may run now; what it computes is of the old weights.
        assert await post(client.authorization, client.probe_ids(1)[0]) == 200
        await asyncio.sleep(0.3)
        assert not any(task.done() for task in held)
        assert (await client.control().swap(manifest, "mine", applies=True)).is_applied
        await client.control().serve(manifest.version)
        await client.control().release("mine")
        (answer,) = await client.generate(prompt, n=1, max_tokens=1, stop_token_ids=[], timeout_s=60, seed=1)
        return refused, answer, await asyncio.gather(*held)  # type: ignore[return-value]

    refused, answer, held = world.run(attack())
    assert (refused, held) == ([403, 403], [200, 200, 200])
    want = next_logprobs(world.model_b, [*prompt, int(answer.tokens[0])])[-1]  # type: ignore[attr-defined]
    np.testing.assert_allclose(answer.logprobs[0], want, atol=TOLERANCE, rtol=0)  # type: ignore[attr-defined]


def test_a_server_reads_the_store_that_it_was_started_on(world: World, tmp_path: Path):
    manifest = world.publish(world.model_a)
    stage = {"version": manifest.version, "content_sha256": manifest.content_sha256, "round_id": "r", "lease_s": 60.0}
    body = rpc("weir_stage", root=str(tmp_path), **stage)
    assert raw(world, "POST", "/collective_rpc", body, authorization=bearer(world)) == 400
    assert world.run(world.client.worker_status()).staged is None


def test_tokens_are_in_no_command_line_and_no_log(world: World):
    token = bearer(world).removeprefix("Bearer ")
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            assert token.encode() not in path.read_bytes()
        except OSError:
            continue
    assert token not in world.replica.log_path.read_text()
