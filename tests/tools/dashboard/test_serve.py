"""`python -m tools.view RUN --web`: what is refused before anything is served."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import pytest

from tests.support.watched_runs import begun_run
from tools import view
from tools.dashboard import DashboardError, serve

TOKEN = "a-token-that-nobody-guesses"


def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    monkeypatch.setattr(sys, "argv", ["view", *map(str, arguments)])
    with pytest.raises(SystemExit):
        view.main()
    said = capsys.readouterr()
    assert said.out == ""
    return said.err


def test_what_cannot_be_served_is_one_clear_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = begun_run(tmp_path / "run")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        cases = {
            (
                run,
                "--web",
                "--port",
                port,
            ): f"port {port} of 127.0.0.1 is in use: give another with --port, or --port 0",
            (run, "--web", "--host", "0.0.0.0"): "--host 0.0.0.0 can be reached from other machines: expected a token",
            (tmp_path, "--web"): "is no run: expected a directory with config.toml",
            (run, run, "--web"): "given twice",
            (run, "--web", "--token-env", "NOT_SET"): "--token-env NOT_SET: that variable is not set",
            (run, "--web", "--token-file", tmp_path / "none"): "No such file",
            (run, "--web", "--host", "no.such.host.invalid"): "expected a token with it",
            (run, "--web", "--port", 99999): "--port 99999: expected 0 to 65535",
            (run, "--port", 1): "--port is for the page: give --web with it",
            (run, run): "a terminal shows one run at a time",
        }
        for arguments, expected in cases.items():
            error = refused(monkeypatch, capsys, *arguments)
            assert expected in error, (arguments, error)
            assert error.startswith("error: ")
            assert error.count("\n") == 1


def test_a_host_that_is_not_ours_is_refused(tmp_path: Path) -> None:
    run = begun_run(tmp_path / "run")
    for host in ("203.0.113.7", "no.such.host.invalid", "a\x00b"):
        with pytest.raises(DashboardError, match=r"listened at|expected an address of this machine"):
            serve.serve([run], host=host, port=0, token=TOKEN)
