"""Headless Chromium, driven through its own debugging protocol."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import json
import os
import shutil
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

PROGRAMS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
#: Nothing of it looks for updates, or anything else outside.
_ARGUMENTS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--disable-extensions", "--mute-audio",
    "--disable-dev-shm-usage", "--hide-scrollbars", "--lang=en-US",
)  # fmt: skip
_START_S = 60.0
_ANSWER_S = 30.0


def program() -> str | None:
    """Path of the browser; None where there is none."""
    return next((path for name in PROGRAMS if (path := shutil.which(name))), None)


class Tab:
    """A page in the browser.

    Attributes:
      troubles: errors of its console and its scripts, and what its content security policy kept out.
    """

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._numbers = itertools.count(1)
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self.troubles: list[str] = []
        self._reader = asyncio.create_task(self._read())

    async def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The answer to a command of the protocol."""
        number = next(self._numbers)
        self._answers[number] = asyncio.get_running_loop().create_future()
        await self._socket.send_json({"id": number, "method": method, "params": parameters})
        answer = await asyncio.wait_for(self._answers[number], _ANSWER_S)
        assert "error" not in answer, answer
        return dict(answer.get("result", {}))

    async def open(self, url: str, *, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        for domain in ("Page", "Runtime", "Log", "Network", "Audits"):
            await self.send(f"{domain}.enable")
        await self.resize(width, height)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await self.send("Emulation.setEmulatedMedia", features=[scheme])
        await self.send("Page.navigate", url=url)
        await self.until("document.readyState === 'complete'")

    async def resize(self, width: int, height: int) -> None:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        await self.send("Emulation.setDeviceMetricsOverride", **size)

    async def run(self, code: str) -> Any:
        """The value of an expression, which may be a promise."""
        found = await self.send("Runtime.evaluate", expression=code, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    async def until(self, code: str, *, within_s: float = 60.0) -> Any:
        """Waits until an expression is true, or an element; returns its value, true for an element.

        An expression that raises is not true yet: a page that loads has nothing in it at first.
        """
        end = asyncio.get_running_loop().time() + within_s
        tried = f"(() => {{ try {{ const found = {code}; return found instanceof Node || found; }} catch {{}} }})()"
        while not (value := await self.run(tried)):
            assert asyncio.get_running_loop().time() < end, f"{code} is still {value!r}; troubles: {self.troubles}"
            await asyncio.sleep(0.1)
        return value

    async def picture(self, path: Path, *, whole: bool = False) -> None:
        found = await self.send("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(found["data"]))

    async def _read(self) -> None:
        async for message in self._socket:
            event = json.loads(message.data)
            if "id" in event:
                self._answers.pop(event["id"]).set_result(event)
            else:
                self._note(event["method"], event["params"])

    def _note(self, method: str, told: dict[str, Any]) -> None:
        match method:
            case "Runtime.exceptionThrown":
                details = told["exceptionDetails"]
                self.troubles.append(details.get("exception", {}).get("description", details["text"]))
            case "Runtime.consoleAPICalled" if told["type"] in ("error", "warning", "assert"):
                self.troubles.append(f"console: {told['args']}")
            case "Log.entryAdded" if told["entry"]["level"] in ("error", "warning"):
                self.troubles.append(f"log: {told['entry']['text']} {told['entry'].get('url', '')}")
            case "Audits.issueAdded" if told["issue"]["code"] == "ContentSecurityPolicyIssue":
                self.troubles.append(f"policy: {told['issue']['details']}")


@asynccontextmanager
async def browser_tab(profile: Path) -> AsyncIterator[Tab]:
    """A tab of a browser of its own, which ends with the block.

    Args:
      profile: folder for it, not there yet.
    """
    command = program()
    assert command is not None
    process = await asyncio.create_subprocess_exec(
        command,
        *_ARGUMENTS,
        f"--user-data-dir={profile}",
        "about:blank",
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        port = await _port(profile / "DevToolsActivePort", process)
        async with aiohttp.ClientSession() as session:
            async with session.put(f"http://127.0.0.1:{port}/json/new?about:blank") as reply:
                address = (await reply.json())["webSocketDebuggerUrl"]
            async with session.ws_connect(address, max_msg_size=2**28) as socket:
                tab = Tab(socket)
                yield tab
                tab._reader.cancel()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


async def _port(path: Path, process: asyncio.subprocess.Process) -> int:
    end = asyncio.get_running_loop().time() + _START_S
    while asyncio.get_running_loop().time() < end:
        assert process.returncode is None, f"the browser ended with status {process.returncode}"
        if path.exists() and (text := path.read_text()).count("\n"):
            return int(text.splitlines()[0])
        await asyncio.sleep(0.05)
    raise AssertionError(f"the browser did not start within {_START_S:g} s")
