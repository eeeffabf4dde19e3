"""A verifier that an answer has taken over reaches nothing; none waits for ever, and problems take turns."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rewards.sandbox import confinement
from rewards.sandbox import killable_pool as isolation_module
from rewards.sandbox.killable_pool import VerifierError, VerifierPool
from rewards.sandbox.plain_json import from_json, to_json
from tests.conftest import REPOSITORY

confined = pytest.mark.skipif(confinement.missing() != "", reason=f"this machine: {confinement.missing()}")


@pytest.fixture(scope="module")
def pool() -> Iterator[VerifierPool]:
    os.environ["WEIR_SECRET"] = os.environ["PGPASSWORD"] = "hunter2"
    made = VerifierPool("tests.support.hostile_verifiers", {}, num_workers=1, deadline_s=20, slice_s=20)
    made.call({"deed": "score", "with": 1}, key="")
    del os.environ["WEIR_SECRET"], os.environ["PGPASSWORD"]
    yield made
    made.close()


def ask(pool: VerifierPool, deed: str, value: Any = None) -> float:
    score = pool.call({"deed": deed, "with": value}, key="").score
    assert score is not None
    return score


def test_results_come_back_and_every_answer_meets_a_fresh_process(pool: VerifierPool) -> None:
    assert ask(pool, "score", 0.25) == 0.25
    assert [ask(pool, "count") for _ in range(3)] == [1.0, 1.0, 1.0]


def test_the_verifier_sees_nothing_of_its_owners_environment(pool: VerifierPool) -> None:
    assert ask(pool, "secret") == 0.0


@confined
def test_a_taken_verifier_reaches_no_file_network_process_or_signal(pool: VerifierPool, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("a secret")
    with socket.create_server(("127.0.0.1", 0)) as server:
        attacks = [
            ("write", str(tmp_path / "new")),
            ("write", str(victim)),
            ("read", str(victim)),
            ("read", "/etc/passwd"),
            ("delete", str(victim)),
            ("connect", list(server.getsockname())),
            ("fork", None),
            ("kill_parent", None),
            ("kill_group", None),
            ("trace", None),
        ]
        for deed, value in attacks:
            with pytest.raises(VerifierError, match=r"PermissionError|Operation not permitted"):
                ask(pool, deed, value)
    assert ask(pool, "program", str(tmp_path / "new")) == 1.0
    assert [path.name for path in tmp_path.iterdir()] == ["victim"]
    assert victim.read_text() == "a secret"
    # None of them harmed the process that forks the children.
    assert ask(pool, "score", 1) == 1.0


def test_what_a_verifier_writes_is_bounded_json_with_a_finite_score(pool: VerifierPool) -> None:
    class Exploit:
        def __reduce__(self) -> Any:
            return os.system, ("touch /tmp/weir-pwned",)

    raw = [
        pickle.dumps(Exploit(), protocol=0).decode("ascii"),
        "",
        "null",
        "1",
        "{}",
        '{"score": "1"}',
        '{"score": 1, "verdict": "pass"}',
        '{"score": NaN}',
        '{"score": 1e999}',
        '{"score": 1, "parts": {"x": [1]}}',
        '{"score": 1} {"score": 0}',
        "[" * 60_000,
        '{"score": 1' + "0" * 60_000 + "}",
    ]
    for text in raw:
        with pytest.raises(VerifierError, match="can't be read|gave no score" if text else "died with exit code 0"):
            ask(pool, "raw", text)
    assert ask(pool, "raw", '{"score": 0.5, "parts": {"x": 1}, "reasons": ["no"]}') == 0.5
    with pytest.raises(VerifierError, match="more than 65536 bytes"):
        ask(pool, "giant")
    assert not os.path.exists("/tmp/weir-pwned")
    assert ask(pool, "score", 1) == 1.0


def test_errors_of_a_verifier_are_told_without_control_characters(pool: VerifierPool) -> None:
    with pytest.raises(VerifierError, match=r"RuntimeError: \\x1b\[31mred line"):
        ask(pool, "raise", "\x1b[31mred\nline")
    with pytest.raises(VerifierError, match="SystemExit: 7"):
        ask(pool, "sys_exit", 7)
    with pytest.raises(VerifierError, match="died with exit code 7"):
        ask(pool, "exit", 7)
    with pytest.raises(VerifierError, match="MemoryError"):
        ask(pool, "memory", 1 << 40)
    with pytest.raises(VerifierError, match="ValueError: Out of range"):
        ask(pool, "score", "inf")


def test_a_hanging_verifier_is_killed_and_the_pool_goes_on() -> None:
    pool = VerifierPool("tests.support.hostile_verifiers", {}, num_workers=1, deadline_s=1.0, slice_s=0.3)
    try:
        for deed in ("sleep", "spin"):
            with pytest.raises(VerifierError, match=r"no verdict within 1 s"):
                pool.call({"deed": deed, "with": 600}, key=deed)
        assert pool.call({"deed": "score", "with": 1}, key="").score == 1.0
    finally:
        pool.close()
    with pytest.raises(VerifierError, match="closed"):
        pool.call({"deed": "score", "with": 1}, key="")


def test_a_verifier_that_needs_more_than_its_slice_gets_its_deadline() -> None:
    pool = VerifierPool("tests.support.hostile_verifiers", {}, num_workers=1, deadline_s=60.0, slice_s=0.05)
    try:
        assert pool.call({"deed": "sleep", "with": 0.2}, key="").score == 1.0
    finally:
        pool.close()


def test_a_verifier_that_cannot_start_says_why() -> None:
    pool = VerifierPool("tests.support.hostile_verifiers", {"broken": True}, num_workers=1, deadline_s=1.0)
    with pytest.raises(VerifierError, match="didn't start: RuntimeError: no such verifier"):
        pool.call({"deed": "score", "with": 1}, key="")


def test_processes_end_with_their_owner_even_if_it_is_killed() -> None:
    program = (
        "import threading, time\n"
        "from rewards.sandbox.killable_pool import VerifierPool\n"
        "pool = VerifierPool('tests.support.hostile_verifiers', {}, num_workers=1, deadline_s=600, slice_s=600)\n"
        "pool.call({'deed': 'score', 'with': 1}, key='')\n"
        "threading.Thread(target=lambda: pool.call({'deed': 'sleep', 'with': 600}, key=''), daemon=True).start()\n"
        "time.sleep(1)\n"
        "print(flush=True)\n"
        "time.sleep(600)\n"
    )
    root = REPOSITORY
    environment = {**os.environ, "PYTHONPATH": str(root)}
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, env=environment) as owner:
        assert owner.stdout is not None
        owner.stdout.readline()
        family = _descendants(owner.pid)
        while len(family) < 2:
            family = _descendants(owner.pid)
        assert len(family) == 2  # the process that forks, and the child that sleeps
        owner.kill()
        owner.wait(30)
    until = time.monotonic() + 60
    while any(os.path.exists(f"/proc/{pid}") for pid in family) and time.monotonic() < until:
        time.sleep(0.05)
    assert not [pid for pid in family if os.path.exists(f"/proc/{pid}")]


def _descendants(pid: int) -> list[int]:
    children = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):
            children += [int(child) for child in (task / "children").read_text().split()]
    return children + [each for child in children for each in _descendants(child)]


def test_a_killed_verifier_process_is_an_error_and_is_replaced() -> None:
    pool = VerifierPool("tests.support.hostile_verifiers", {}, num_workers=1, deadline_s=60.0)
    try:
        assert pool.call({"deed": "score", "with": 1}, key="").score == 1.0
        os.kill(pool._idle[0]._child.pid, signal.SIGKILL)
        with pytest.raises(VerifierError, match="gone"):
            pool.call({"deed": "score", "with": 1}, key="")
        assert pool.call({"deed": "score", "with": 1}, key="").score == 1.0
        process = pool._idle[0]._child
        os.kill(process.pid, signal.SIGSTOP)  # a stopped one ends with the pool like any other
    finally:
        pool.close()
    assert process.returncode == -signal.SIGKILL


@confined
def test_the_filter_knows_only_calls_of_its_own_machine() -> None:
    for machine in ("x86_64", "aarch64"):
        program = confinement.filter_program(machine)
        assert len(program) % 8 == 0
        assert len(program) // 8 < 256  # jumps are bytes


def test_folders_that_may_be_read_are_those_of_the_libraries_each_once() -> None:
    folders = confinement.library_folders()
    assert not [(one, other) for one in folders for other in folders if one.startswith(other + os.sep)]
    for wanted in (sysconfig.get_path("stdlib"), sysconfig.get_path("purelib"), "/usr/lib", *pytest.__path__):
        path = os.path.realpath(wanted)
        assert [folder for folder in folders if path == folder or path.startswith(folder + os.sep)], path


def test_first_attempts_run_before_rests_and_problems_take_turns() -> None:
    turns = isolation_module._Turns(1)
    order: list[str] = []
    entered, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with turns.taken("holder", is_rest=False, timeout_s=60):
            entered.set()
            leave.wait(60)

    def run(name: str, key: str, is_rest: bool) -> None:
        with turns.taken(key, is_rest=is_rest, timeout_s=60):
            order.append(name)

    threads = [threading.Thread(target=hold)]
    threads[0].start()
    assert entered.wait(60)
    calls = [("rest", "a", True), ("a1", "a", False), ("a2", "a", False), ("a3", "a", False), ("b1", "b", False)]
    calls.append(("c1", "c", False))  # as many of its problem wait as of b's
    for count, call in enumerate(calls, start=1):
        threads.append(threading.Thread(target=run, args=call))
        threads[-1].start()
        while len(turns._waiting) < count:
            time.sleep(0.001)
    assert len(set(turns._waiting)) == len(calls), "of two that are alike the older one runs first"
    assert turns._waiting == sorted(turns._waiting, key=lambda ticket: ticket[2])
    leave.set()
    for thread in threads:
        thread.join(60)
    assert order[-1] == "rest"
    assert order.index("b1") < order.index("a3")
    assert order.index("a1") < order.index("a2") < order.index("a3")


def test_a_place_is_kept_for_first_attempts() -> None:
    turns = isolation_module._Turns(2)
    with turns.taken("a", is_rest=True, timeout_s=1):
        with pytest.raises(VerifierError, match="no verifier was free"), turns.taken("b", is_rest=True, timeout_s=0.05):
            pass
        with turns.taken("c", is_rest=False, timeout_s=1):
            pass


def test_slow_answers_to_one_problem_share_a_budget_that_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(isolation_module.time, "monotonic", lambda: now[0])
    budgets = isolation_module._Budgets(5.0)
    assert budgets.take("a") == 5.0
    assert budgets.take("a") == 0.0
    assert budgets.take("b") == 5.0
    budgets.give_back("b", 3.0)
    assert budgets.take("b") == 3.0
    now[0] += 30
    assert budgets.take("a") == pytest.approx(2.5)
    now[0] += 1e6
    assert budgets.take("a") == 5.0


def test_a_problem_whose_budget_is_spent_costs_slices_only() -> None:
    pool = VerifierPool("tests.support.hostile_verifiers", {}, num_workers=1, deadline_s=3.0, slice_s=1.0)
    try:
        pool._budgets.take("towers")
        with pytest.raises(VerifierError, match=r"no verdict within 1 s, and the other answers to this problem"):
            pool.call({"deed": "sleep", "with": 600}, key="towers")
        assert pool.call({"deed": "score", "with": 1}, key="towers").score == 1.0
    finally:
        pool.close()


def test_problems_survive_json() -> None:
    value = {"a": (1, 2.5, None), 3: {"x"}, "nan": float("inf"), "deep": [{"k": ((),)}], ("t",): True}
    assert from_json(json.loads(json.dumps(to_json(value)))) == value
    with pytest.raises(TypeError, match="object is not plain data"):
        to_json({"a": object()})
