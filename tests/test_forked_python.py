"""A forked program is what the real command would be: its surroundings, its output, its end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.forked_python import HOST_JAX, Program, start_python
from tests.support.network import network

Start = Callable[..., tuple[Program, Path]]


@pytest.fixture(params=[False, True], ids=["forked", "anew"])
def start(request: pytest.FixtureRequest, tmp_path: Path) -> Start:
    def started(*arguments: str, **more: Any) -> tuple[Program, Path]:
        path = tmp_path / f"output {' '.join(arguments)}"
        environment = {"PATH": os.environ["PATH"], "TMPDIR": str(tmp_path), "WORD": " ".join(arguments)} | HOST_JAX
        with path.open("wb") as output:
            program = start_python(
                "tests.support.told_process",
                arguments,
                cwd=tmp_path,
                environment=environment,
                output=output,
                anew=request.param,
                **more,
            )
        return program, path

    return started


def test_it_has_the_surroundings_that_it_was_given(start: Start, tmp_path: Path) -> None:
    (program, output), (other, of_other) = start("0"), start("7")
    assert (program.wait(60), other.wait(60)) == (0, 7)
    assert (program.poll(), other.returncode) == (0, 7)
    said, told = json.loads(output.read_text()), json.loads(of_other.read_text())
    assert (said["arguments"], said["pid"], said["group"]) == (["0"], program.pid, os.getpgid(0))
    assert (said["cwd"], said["temporary"]) == (str(tmp_path), str(tmp_path))
    assert (said["environment"]["WORD"], told["environment"]["WORD"]) == ("0", "7")
    assert said["environment"].keys() - {"PYTHONPATH", "LC_CTYPE"} == {"PATH", "TMPDIR", "WORD", *HOST_JAX}
    assert said["descriptors"] == told["descriptors"] == 4  # one lists them
    assert said["random"] != told["random"]
    assert said["imported"] == (not isinstance(program, subprocess.Popen))


def test_it_can_be_waited_for_and_killed(start: Start) -> None:
    program, output = start("0", "60")
    while not output.read_text():
        assert program.poll() is None
        time.sleep(0.01)
    with pytest.raises(subprocess.TimeoutExpired):
        program.wait(0.1)
    program.send_signal(signal.SIGTERM)
    assert program.wait(30) == -signal.SIGTERM
    program.kill()  # of nobody
    program, _ = start("0", "61")
    program.kill()
    assert program.wait(30) == -signal.SIGKILL


def test_its_warnings_are_errors_and_go_where_its_output_goes(start: Start) -> None:
    program, output = start("warn")
    assert program.wait(60) == 1
    assert output.read_text().endswith("UserWarning: as an error\n")


def test_it_runs_in_another_network(start: Start) -> None:
    with network(1) as lan:
        program, _ = start("0", "60", namespace=lan.namespace(0))
        inside = f"/proc/{program.pid}/ns/net"
        while os.readlink(inside) == os.readlink("/proc/self/ns/net"):
            assert program.poll() is None
        program.kill()
        program.wait(30)
