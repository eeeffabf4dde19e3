"""The supervisor with real processes: restarts, failures that carry their log, and nobody left behind."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from serving_bridge.guard import descendants
from serving_bridge.supervisor import ProcessFailedError, Supervisor


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def wait_until_ended(supervisor: Supervisor, name: str) -> None:
    deadline = time.monotonic() + 20
    while supervisor._children[name].process.poll() is None:
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
    import os

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
