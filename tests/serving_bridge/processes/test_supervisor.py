"""The supervisor with real processes: restarts, failures that carry their log, and nobody left behind."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from serving_bridge.processes.guard import GuardedProcess, GuardError, descendants
from serving_bridge.processes.supervisor import ProcessFailedError, Supervisor


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def wait_until_ended(supervisor: Supervisor, name: str) -> None:
    deadline = time.monotonic() + 20
    while None in [child.process.poll() for child in supervisor._groups[name].children]:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_crash_is_not_an_end_and_is_restarted(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    code = f"import pathlib, sys; p = pathlib.Path({str(marker)!r}); seen = p.exists(); p.touch(); sys.exit(not seen)"
    restarts: list[str] = []
    with Supervisor(tmp_path, lambda event, **fields: restarts.append(fields["name"])) as supervisor:
        supervisor.start("job", python(code), restarts=1)
        wait_until_ended(supervisor, "job")
        assert not supervisor.has_finished("job")
        supervisor.check()
        assert restarts == ["job"]
        wait_until_ended(supervisor, "job")
        assert supervisor.has_finished("job")
        supervisor.check()


def test_without_restarts_left_the_end_of_the_log_is_told(tmp_path: Path) -> None:
    with Supervisor(tmp_path, lambda event, **fields: None) as supervisor:
        supervisor.start("job", python("print('why it died'); raise SystemExit(3)"))
        wait_until_ended(supervisor, "job")
        with pytest.raises(ProcessFailedError, match=r"(?s)process job ended with status 3.*why it died"):
            supervisor.check()


def test_leaving_ends_every_process_and_its_children(tmp_path: Path) -> None:
    code = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])"
    before = set(descendants(os.getpid()))
    with Supervisor(tmp_path, lambda event, **fields: None) as supervisor:
        supervisor.start("job", python(f"{code}; time.sleep(60)"), grace_s=1.0)
        deadline = time.monotonic() + 20
        while len(set(descendants(os.getpid())) - before) < 3:
            assert time.monotonic() < deadline
            time.sleep(0.02)
    assert set(descendants(os.getpid())) <= before


def test_a_process_that_was_asked_to_stop_is_not_a_failure(tmp_path: Path) -> None:
    with Supervisor(tmp_path, lambda event, **fields: None) as supervisor:
        supervisor.start("job", python("import time; time.sleep(60)"), grace_s=1.0)
        supervisor.ask_to_stop("job")
        wait_until_ended(supervisor, "job")
        supervisor.check()
        assert not supervisor.has_finished("job")


def test_a_guard_that_is_stopped_itself_can_be_destroyed_with_all_below_it(tmp_path: Path) -> None:
    before = set(descendants(os.getpid()))
    log = tmp_path / "log"
    process = GuardedProcess(
        python("import time; print('up', flush=True); time.sleep(60)"), env=dict(os.environ), log_path=log, grace_s=1.0
    )
    until(lambda: "up" in log.read_text())
    os.kill(process.pid, signal.SIGSTOP)
    process.kill()
    with pytest.raises(GuardError, match="did not end within"):
        process.wait(0.3)
    process.destroy()
    assert set(descendants(os.getpid())) <= before
    assert process.poll() is not None


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_group_lives_and_dies_together_and_leaves_others_alone(tmp_path: Path) -> None:
    """Of two processes one crashes in its first life; the other does not notice, and is ended after `end_s`."""
    marker, events = tmp_path / "marker", []
    crash = f"import pathlib, sys, time; p = pathlib.Path({str(marker)!r}); seen = p.exists(); p.touch()"
    crash += "; time.sleep(60) if seen else sys.exit(3)"
    starts = iter(range(10))

    def commands() -> list[list[str]]:
        start = next(starts)
        return [python(f"import time; print('start', {start}, flush=True); time.sleep(60)"), python(crash)]

    with Supervisor(tmp_path, lambda event, **fields: events.append(fields)) as supervisor:
        supervisor.start("other", python("import time; time.sleep(60)"), grace_s=1.0)
        supervisor.start_group("group", commands, restarts=1, grace_s=1.0, end_s=0.5)
        first, other = supervisor.pids("group"), supervisor.pids("other")

        def restarted() -> bool:
            supervisor.check()
            return supervisor.pids("group") != first

        until(restarted)
        (event,) = events
        assert (event["name"], event["restarts_left"]) == ("group", 0)
        assert event["status"][0] > 128  # by a signal
        assert event["status"][1] == 3
        until(lambda: "start 1" in (tmp_path / "group-0.log").read_text())
        assert set(supervisor.pids("group")).isdisjoint(first)
        assert supervisor.pids("other") == other
        supervisor.check()
        assert not supervisor.has_finished("group")


def test_a_group_is_blamed_on_the_process_that_began_it(tmp_path: Path) -> None:
    """The one that was killed says nothing, and the one that ended because of it is seen first."""
    echo = "import sys; sys.exit('error: host 0 of 3 stops, because host 1 died: it was killed')"
    victim = "import os, signal; print('step 7', flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    other = "import sys; sys.exit('error: odd')"
    commands = [python(echo), python(victim), python(other), python("import time; time.sleep(60)")]
    with Supervisor(tmp_path, lambda event, **fields: None) as supervisor:
        supervisor.start_group("group", lambda: commands, grace_s=1.0, end_s=2.0)

        def failed() -> ProcessFailedError | None:
            try:
                supervisor.check()
            except ProcessFailedError as error:
                return error
            return None

        until(lambda: all(child.process.poll() is not None for child in supervisor._groups["group"].children[:3]))
        found: list[ProcessFailedError] = []
        until(lambda: [found.append(error) for error in [failed()] if error] and found)
    assert str(found[0]).startswith("process group-1 ended with status 137; the end of ")
    echoed = "group-0 said: error: host 0 of 3 stops, because host 1 died: it was killed"
    assert str(found[0]).endswith(f"step 7\n{echoed}")
    assert found[0].status == 137


def test_a_group_has_finished_when_all_of_it_has(tmp_path: Path) -> None:
    with Supervisor(tmp_path, lambda event, **fields: None) as supervisor:
        supervisor.start_group("group", lambda: [python("pass"), python("import time; time.sleep(0.5)")])
        until(lambda: supervisor._groups["group"].children[0].process.poll() == 0)
        assert not supervisor.has_finished("group")
        until(lambda: supervisor.has_finished("group"))


def test_restarts_are_counted_within_a_window_and_wait_longer_each_time(tmp_path: Path) -> None:
    now, lives = [0.0], []
    with Supervisor(tmp_path, lambda event, **fields: lives.append(now[0]), clock=lambda: now[0]) as supervisor:
        supervisor.start("job", python("raise SystemExit(3)"), restarts=2, window_s=100.0)
        for now[0] in (0.0, 10.0, 10.5, 11.0, 150.0):
            wait_until_ended(supervisor, "job")
            supervisor.check()
        assert lives == [0.0, 11.0, 150.0]  # the second one waits for a second, and the third has its budget back
        for now[0] in (151.0, 152.5):
            wait_until_ended(supervisor, "job")
            supervisor.check()
        wait_until_ended(supervisor, "job")
        now[0] = 153.0
        with pytest.raises(ProcessFailedError, match="ended with status 3"):
            supervisor.check()


@pytest.mark.parametrize("again", [False, True])
def test_an_interrupt_ends_everything_at_once_also_while_it_is_being_stopped(tmp_path: Path, again: bool) -> None:
    stubborn = python(
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(60)"
    )
    before = set(descendants(os.getpid()))
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt), Supervisor(tmp_path, lambda event, **fields: None) as supervisor:  # noqa: PT012
        supervisor.start("job", stubborn, grace_s=40.0)
        until(lambda: "1" in (tmp_path / "job.log").read_text())
        if not again:
            raise KeyboardInterrupt
        signal.signal(signal.SIGALRM, signal.default_int_handler)
        signal.setitimer(signal.ITIMER_REAL, 0.5)
    assert time.monotonic() - started < 15
    assert set(descendants(os.getpid())) <= before
