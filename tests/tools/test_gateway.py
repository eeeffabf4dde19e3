"""`tools.gateway` as a process: it listens, is ready, answers OpenAI's client, and drains at SIGTERM."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path

from configs.load import load_config, save_config
from configs.schema import Config
from serving_bridge.access import Gate
from serving_bridge.canary import OBSERVATIONS
from serving_bridge.database import open_database
from serving_bridge.registry import Registry, TrafficChange
from serving_bridge.text import load_tokenizer
from tests.support.gateway_world import Replica, Script, report, serve
from tests.support.registries import FILES, candidate, published
from tools.assembly import build_arm_replicas, build_keys, build_registry, run_paths

STORIES = "stories"


async def started(config: Path, *more: str) -> tuple[asyncio.subprocess.Process, str, str]:
    """The process, and the addresses that it says."""
    command = [sys.executable, "-m", "tools.gateway", "--config", str(config), "--set", "gateway.port=0", *more]
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    assert process.stdout is not None
    line = (await asyncio.wait_for(process.stdout.readline(), 60)).decode()
    found = re.findall(r"http://\S+", line)
    assert len(found) == 2, line + (await process.stdout.read()).decode()
    return process, found[0].rstrip(";"), found[1]


def fetched(url: str, body: object = None) -> tuple[int, bytes]:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=20) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


async def until_ready(ready: str) -> None:
    for _ in range(100):
        with suppress(urllib.error.URLError):
            if (await asyncio.to_thread(fetched, ready))[0] == 200:
                return
        await asyncio.sleep(0.05)


def _run(tmp_path: Path, model: Path, *more: str) -> Config:
    """A run with its configuration, and nothing else."""
    directory = tmp_path / "run"
    directory.mkdir()
    config = load_config(STORIES, [f"run.directory={directory}", f"model.path={model}", *more])
    save_config(config, directory / "config.toml")
    return config


def test_a_gateway_that_follows_aliases(tmp_path: Path, stories_model: Path) -> None:
    """Two replicas of two entries: answers say whose, and the split moves while the gateway runs."""
    folder = tmp_path / "registry"
    config = _run(tmp_path, stories_model, "gateway.follow=aliases", f"registry.path={folder}")
    paths = run_paths(config)
    registry = Registry(folder)
    for seed in (0, 1):
        store, version = published(tmp_path / "weights", seed)
        entry = registry.register("default", store, version, FILES, candidate(), actor="ann")
        registry.index.set_stage("default", entry.number, "passed", actor="ann", reason="x", unproven=True)
    registry.move("default", {"stable": 1}, holder="ann", actor="ann", reason="first")
    rows = build_arm_replicas(config, registry)
    keys = build_keys(config, paths, rows)
    keys.make()
    tokenizer = load_tokenizer(stories_model)
    replicas = [Replica(tokenizer, Script("Once", version=str(version)), f"r{version}") for version in (1, 2)]

    async def arms(url: str) -> set[tuple[str, int]]:
        bodies = [{"model": "policy", "prompt": f"Tom {i}"} for i in range(8)]
        found = [await asyncio.to_thread(fetched, f"{url}/completions", body) for body in bodies]
        assert {status for status, _ in found} == {200}
        answers = [json.loads(answer)["weir"] for _, answer in found]
        return {(answer["arm"], answer["policy_version"]) for answer in answers}

    async def play() -> None:
        runners = []
        for replica in replicas:
            runners.append(await serve(replica))
            control = keys.token("control", replica.url, replica.start)
            replica.gate = Gate(replica.url, control, keys.token("inference", replica.url, replica.start))
            report(rows, replica)
        process, url, ready = await started(paths.config)
        try:
            await until_ready(ready)
            assert await arms(url) == {("stable", 1)}
            half = TrafficChange(0.5)
            registry.move("default", {"canary": 2}, holder="ann", actor="ann", reason="step", traffic=half)
            await asyncio.sleep(1.2)
            assert await arms(url) == {("stable", 1), ("canary", 2)}
            registry.move("default", {"canary": None}, holder="ann", actor="ann", reason="back")
            await asyncio.sleep(1.2)
            assert await arms(url) == {("stable", 1)}
        finally:
            process.send_signal(signal.SIGTERM)
            await process.wait()
            for runner in runners:
                await runner.cleanup()

    asyncio.run(play())
    registry.close()
    events = [json.loads(line) for line in paths.metrics.read_text().splitlines()]
    assert sum(event.get("arms", {}).get("canary", 0) for event in events) > 0
    seen = open_database(folder / "observations.sqlite", schema=OBSERVATIONS)
    kept = seen.read(lambda session: session.execute("SELECT arm, version, tenant, measures FROM observations"))
    seen.close()
    assert len(kept) == 24
    assert {(arm, version) for arm, version, *_ in kept} == {("stable", 1), ("canary", 2)}
    assert all({"error", "ttft_s", "refusal", "length"} <= json.loads(measures).keys() for *_, measures in kept)
    assert "Tom" not in str(kept)
    assert "Once" not in str(kept)


def test_what_can_not_be_followed_is_said_at_the_start(tmp_path: Path, stories_model: Path) -> None:
    folder = tmp_path / "registry"
    config = _run(tmp_path, stories_model, "gateway.follow=aliases", f"registry.path={folder}")
    command = [sys.executable, "-m", "tools.gateway", "--config", str(run_paths(config).config)]
    for expected in ("does not exist: expected a registry", "namespace default has no alias stable"):
        ended = subprocess.run([*command, "--set", "gateway.port=0"], capture_output=True, text=True, timeout=60)
        assert ended.returncode != 0
        assert expected in ended.stderr
        assert "Traceback" not in ended.stderr
        Registry(folder).close()


def test_the_process_of_a_gateway(tmp_path: Path, stories_model: Path) -> None:
    config = _run(tmp_path, stories_model)
    paths = run_paths(config)
    directory = paths.directory
    keys, registry = build_keys(config, paths), build_registry(paths)
    keys.make()
    script = Script("Once upon a time", token_s=0.05)
    replica = Replica(load_tokenizer(stories_model), script, "r0")

    async def play() -> None:
        runner = await serve(replica)
        control = keys.token("control", replica.url, replica.start)
        replica.gate = Gate(replica.url, control, keys.token("inference", replica.url, replica.start))
        process, url, ready = await started(directory / "config.toml")
        try:
            assert (await asyncio.to_thread(fetched, ready))[0] == 503, "there is no replica yet"
            registry.report("r0", url=replica.url, state="healthy", version=3, step=3, start=replica.start)
            await until_ready(ready)
            body = {"model": "policy", "prompt": "Tom", "stream": True}
            asked = asyncio.ensure_future(asyncio.to_thread(fetched, f"{url}/completions", body))
            while not script.running:
                await asyncio.sleep(0.01)
            process.send_signal(signal.SIGTERM)
            status, answer = await asked
            assert status == 200
            assert answer.endswith(b"data: [DONE]\n\n")
            assert await asyncio.wait_for(process.wait(), 30) == 0
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
            await runner.cleanup()

    asyncio.run(play())
    events = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    assert sum(event.get("statuses", {}).get("200", 0) for event in events) == 1
    assert sum(event.get("completion_tokens", 0) for event in events) > 3
    assert b"Tom" not in (directory / "metrics.jsonl").read_bytes()
