"""The page in headless Chromium: it draws a run, follows it, and obeys its own content security policy."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.chromium import Tab, browser_tab, program
from tests.support.watched_runs import HOSTILE, append, begun_run, held_out, step_event
from tests.support.written_runs import write_run

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(program() is None, reason="Chromium (Debian package chromium-headless-shell) is not installed"),
]
TOKEN = "a-token-that-nobody-guesses"


@contextmanager
def served(*arguments: object, **environment: str) -> Iterator[str]:
    """Address of the page of these runs, from a process of its own."""
    command = [sys.executable, "-m", "tools.view", *map(str, arguments), "--web", "--port", "0"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | environment
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


def seen(profile: Path, look: Callable[[Tab], Coroutine[Any, Any, None]]) -> None:
    """Looks at a page with a browser of its own; fails where the page or its policy had trouble."""

    async def run() -> None:
        async with browser_tab(profile) as tab:
            await look(tab)
            assert tab.troubles == []

    asyncio.run(run())


TEXT = "document.body.innerText"
PLACE = "document.getElementById('filter').getBoundingClientRect().top"
CURVE = "document.querySelector('#chart-reward .curve:last-of-type')"


def test_a_run_is_drawn_and_followed_without_moving_what_is_read(tmp_path: Path) -> None:
    directory = write_run(tmp_path / "run", finished=False)
    append(directory, held_out(5, 1106.0, "2 + 2", "3 + 3"))

    async def look(tab: Tab) -> None:
        await tab.open(address)
        await tab.until(f"{TEXT}.includes('step 10 of 20')")
        await tab.until(CURVE)
        points = await tab.run(f"{CURVE}.getAttribute('d').split('L').length")
        assert points == 10
        for told in ("0.800", "25% → 50%", "Rollout-bound", "275", "golden log-probs differ", "answer 5: 3 + 3"):
            assert await tab.until(f"{TEXT}.includes({told!r})"), told
        assert await tab.run("document.querySelectorAll('.chart:not([hidden]) .plot:not([hidden])').length") >= 12
        await tab.run(
            "document.getElementById('answers').scrollIntoView(); document.querySelector('#filter input').focus()"
        )
        place = await tab.run(PLACE)
        append(directory, *(step_event(number, 1100.0 + number, reward=0.9) for number in range(11, 16)))
        append(directory, held_out(15, 1115.5, "2 + 2", "3 + 3"))
        await tab.until("document.title.includes('step 15')")
        await tab.until("!document.getElementById('newer').hidden")
        assert not await tab.run(f"{TEXT}.includes('answer 15')"), "answers moved under the reader"
        assert abs(await tab.run(PLACE) - place) < 2
        assert await tab.run("document.activeElement.name") == "text"
        await tab.run("document.getElementById('newer').click()")
        await tab.until(f"{TEXT}.includes('answer 15: 2 + 2')")
        assert await tab.run("document.querySelectorAll('.prompt')[0].querySelectorAll('.answer').length") >= 2
        await tab.run("window.scrollTo(0, 0)")
        await tab.until(f"({CURVE}?.getAttribute('d').split('L').length) === 15")
        await tab.run("document.querySelector('#chart-reward .plot').focus()")
        key = {"key": "ArrowLeft", "code": "ArrowLeft", "windowsVirtualKeyCode": 37}
        for step in (15, 14):
            await tab.send("Input.dispatchKeyEvent", type="keyDown", **key)
            await tab.until(f"document.querySelector('.tip:not([hidden])')?.innerText.includes('step {step}')")

    with served(directory) as address:
        seen(tmp_path / "profile", look)


def test_hostile_answers_act_on_nothing_and_a_phone_needs_no_sideways_scrolling(tmp_path: Path) -> None:
    first = write_run(tmp_path / "a")
    second = begun_run(tmp_path / "b", name="other")
    append(second, *(step_event(number, 5000.0 + number) for number in range(1, 4)), held_out(3, 5004.0, *HOSTILE))
    for text in HOSTILE:
        append(second, {"t": 5005.0, "process": text, "event": "retry", "error": text})
        append(
            second, {"t": 5005.0, "process": "fleet", "event": "replica", "replica": text, "state": text, "version": 1}
        )

    async def look(tab: Tab) -> None:
        await tab.open(address, width=390, height=844, dark=True)
        await tab.until("document.querySelectorAll('.prompt').length >= 5")
        for part in ("'answers'", "'events'", "'fleet'", "'settings'"):
            await tab.run(f"document.getElementById({part}).scrollIntoView()")
            await asyncio.sleep(0.2)
        assert await tab.run("window.owned") is None
        assert (
            await tab.run("document.querySelectorAll('main script, main img, main [onerror], main [onload]').length")
            == 0
        )
        assert await tab.run(f"/[\\u001b\\u0007\\u009b\\u202e\\u2066\\u200b]/.test({TEXT})") is False
        assert await tab.run("document.documentElement.scrollWidth") <= 390
        assert await tab.run("getComputedStyle(document.body).backgroundColor") == "rgb(10, 16, 29)"
        assert await tab.run("document.querySelectorAll('#legend .chip').length") == 2
        await tab.run("document.querySelectorAll('#legend .chip')[0].click()")
        await tab.until("document.querySelector('#now .run strong')?.innerText === 'other'")

    with served(first, second) as address:
        seen(tmp_path / "profile", look)


def test_the_token_is_asked_for_and_a_run_that_has_not_begun_says_so(tmp_path: Path) -> None:
    directory = begun_run(tmp_path / "run")

    async def look(tab: Tab) -> None:
        await tab.open(address)
        await tab.until("document.getElementById('token')")
        assert "/login" in await tab.run("location.href")
        await tab.run(f"document.getElementById('token').value = '{TOKEN}'; document.querySelector('button').click()")
        await tab.until(f"{TEXT}.includes('nothing written yet')")
        assert await tab.run("document.cookie") == ""
        assert TOKEN not in await tab.run("location.href")
        await tab.until(f"{TEXT}.includes('Nothing measured yet.')")
        append(directory, step_event(1, 5000.0))
        await tab.until("document.title.includes('step 1')")

    with served(directory, "--token-env", "VIEW_TOKEN", VIEW_TOKEN=TOKEN) as address:
        seen(tmp_path / "profile", look)
