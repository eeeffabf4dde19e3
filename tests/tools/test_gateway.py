"""`tools.gateway` as a process: it listens, is ready, answers OpenAI's client, and drains at SIGTERM."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import sys
import urllib.error
import urllib.request
from pathlib import Path

from configs.load import load_config, save_config
from serving_bridge.access import Gate
from serving_bridge.text import load_tokenizer
from tests.support.gateway_world import Replica, Script, serve
from tools.assembly import build_keys, build_registry, run_paths

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


def test_the_process_of_a_gateway(tmp_path: Path, stories_model: Path) -> None:
    directory = tmp_path / "run"
    directory.mkdir()
    config = load_config(STORIES, [f"run.directory={directory}", f"model.path={stories_model}"])
    save_config(config, directory / "config.toml")
    paths = run_paths(config)
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
            for _ in range(100):
                if (await asyncio.to_thread(fetched, ready))[0] == 200:
                    break
                await asyncio.sleep(0.05)
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
