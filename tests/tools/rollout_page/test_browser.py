"""The page of rollouts in headless Chromium: it draws, obeys its own policy, and its buttons ask first."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.canary_world import CanaryWorld
from tests.support.chromium import Tab, browser_tab, program

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(program() is None, reason="Chromium (Debian package chromium-headless-shell) is not installed"),
]
TOKEN = "a-token-that-nobody-guesses"
TEXT = "document.body.innerText"


@contextmanager
def served(root: Path) -> Iterator[str]:
    command = [sys.executable, "-m", "tools.canary", "page", str(root), "--port", "0", "--token-env", "ADMIN_KEY"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {"ADMIN_KEY": TOKEN}
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("http://"), process.communicate(timeout=10)
        yield line.split()[0]
    finally:
        process.terminate()
        _, errors = process.communicate(timeout=30)
        assert errors == ""


def test_a_rollout_is_drawn_and_aborted_after_a_confirmation(tmp_path: Path) -> None:
    world = CanaryWorld.of(tmp_path)
    world.clock.now_s = time.time()
    world.fill()
    controller = world.start()
    world.pass_time(n=600)
    controller.look()
    controller.release()

    async def play(tab: Tab, address: str) -> None:
        await tab.open(address)
        await tab.run(f"document.getElementById('token').value = {TOKEN!r}, document.forms[0].submit()")
        await tab.until(f"{TEXT}.includes('Rollout 1: entry 2 against 1, running')")
        await tab.until(f"{TEXT}.includes('Traffic: canary answers 20.00% of the conversations')")
        await tab.until("document.querySelectorAll('#graph rect.node').length === 2")
        assert await tab.run("document.querySelectorAll('#graph path.edge').length") == 1
        assert "error" in await tab.run("document.getElementById('metrics').innerText")
        assert await tab.run("document.querySelector('#rollout .here').textContent") == "20%"
        waits = await tab.run("document.getElementById('waits').innerText")
        assert "rollout 1: waits for a controller: tools.canary run" in waits
        assert await tab.run("document.querySelectorAll('#days polyline').length") == 2, "error and ttft_s"
        await tab.resize(390, 844)
        await tab.until("document.documentElement.scrollWidth <= innerWidth")
        await tab.resize(1280, 900)
        await tab.run("document.getElementById('do-abort').click()")
        await tab.until("document.getElementById('confirm').open")
        assert await tab.run("document.getElementById('yes').disabled"), "not without the words"
        typed = "typed.value = 'abort 1'; typed.dispatchEvent(new Event('input'))"
        await tab.run(f"{{ const typed = document.getElementById('typed'); {typed} }}")
        if folder := os.environ.get("WEIR_PICTURES"):
            await tab.picture(Path(folder) / "confirm.png")
        await tab.run("document.getElementById('yes').click()")
        await tab.until(f"{TEXT}.includes('rollout 1: abort is done')")
        await tab.until(f"{TEXT}.includes('Rollout 1: entry 2 against 1, aborted')")
        if folder:
            await tab.picture(Path(folder) / "page.png", whole=True)
        assert tab.troubles == []

    async def run() -> None:
        async with browser_tab(tmp_path / "profile") as tab:
            with served(tmp_path) as address:
                await play(tab, address)

    asyncio.run(run())
    assert world.agreement()[:4] == ("aborted", None, world.stable, 0.0)
    world.close()
