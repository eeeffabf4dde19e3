"""A role's process starts with its variables, secrets and address, or says why it can't."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tools.role import RoleError, own_address, value_of

SHOW = "import os, sys; print(os.environ.get('SECRET'), os.environ.get('PLAIN'), sys.argv[1:])"


def started(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "WEIR_ADDRESS"} | variables
    return subprocess.run(
        [sys.executable, "-P", "-m", "tools.role", *arguments],
        env=environment | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_variables_and_address_reach_the_command(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("hunter2\n")
    told = ["--variable", f"SECRET=file:{tmp_path / 'secret'}", "--variable", "PLAIN=a=b c"]
    done = started(*told, "--need", str(tmp_path), "--", sys.executable, "-c", SHOW, "x={address}", "y")
    assert done.stdout == "hunter2 a=b c ['x=127.0.0.1', 'y']\n", done.stderr
    done = started("--variable", "SECRET=env:THEIRS", "--", sys.executable, "-c", SHOW, "{address}",
                   THEIRS="hunter3", WEIR_ADDRESS="10.0.0.7")  # fmt: skip
    assert done.stdout == "hunter3 None ['10.0.0.7']\n", done.stderr


def test_a_command_keeps_its_status_and_signal_number() -> None:
    assert started("--", sys.executable, "-c", "raise SystemExit(7)").returncode == 7


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--need", "/no/such", "--", "true"], "does not see /no/such: mount the shared folder there"),
        (["--variable", "A=env:NOT_SET_HERE", "--", "true"], "NOT_SET_HERE to be set where the role starts"),
        (["--variable", "A=file:/no/such", "--", "true"], "file:/no/such: can't be read: No such file"),
        (["--", "/no/such/program"], "can't start /no/such/program"),
        (["--towards", "no.such.host.invalid", "--", "x{address}"], "no way to the run's first host"),
    ],
)
def test_what_is_missing_is_said_in_a_line_and_not_tried_again(arguments: list[str], message: str) -> None:
    done = started(*arguments)
    assert done.returncode == os.EX_CONFIG
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_an_empty_secret_is_none(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(RoleError, match="expected one text"):
        value_of(f"file:{tmp_path / 'empty'}", {})
    with pytest.raises(RoleError, match="EMPTY to be set"):
        value_of("env:EMPTY", {"EMPTY": ""})
    assert value_of("postgres:x", {}) == "postgres:x"


def test_the_address_is_that_of_the_way_to_the_first_host() -> None:
    assert own_address("127.0.0.5", {}) == "127.0.0.1"
