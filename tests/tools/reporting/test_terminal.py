"""Text for people: nothing in it steers a terminal, every terminal can show it, and no pipe cuts it."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.table import Table

from learner_jax.runtime.text import printable
from tests.conftest import REPOSITORY
from tests.support.written_runs import write_run
from tools.reporting.terminal import SafeConsole, print_json


def in_soak(*values: str) -> list[object]:
    return [pytest.param(value, marks=pytest.mark.soak) for value in values]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain, ünïcode, 漢字, 🙂", "plain, ünïcode, 漢字, 🙂"),
        ("\x1b[31mred\x1b[0m", "\\x1b[31mred\\x1b[0m"),
        ("\x9b2J", "\\x9b2J"),
        ("a\rb\x08c\x00", "a\\rb\\x08c\\x00"),
        ("\u202eevil\u2066\u200b", "\\u202eevil\\u2066\\u200b"),
        ("lone \ud800", "lone \\ud800"),
        ("two\nlines\t", "two\\nlines\\t"),
    ],
)
def test_what_is_not_printable_is_escaped(text: str, shown: str):
    assert printable(text) == shown
    assert printable(shown) == shown


def test_lines_can_be_kept():
    assert printable("two\nlines\t\x1b\r", keep_lines=True) == "two\nlines\t\\x1b\\r"


def test_a_console_renders_no_control_of_its_text():
    output = io.StringIO()
    console = SafeConsole(file=output, force_terminal=True, width=60, color_system="truecolor")
    table = Table("name")
    table.add_row("\x1b[2J\x9b1m[bold]kept[/]")
    console.print(table)
    console.print("\x1b]8;;http://x\x07link", style="red", highlight=False)
    shown = output.getvalue()
    assert "\\x1b[2J\\x" in shown
    assert "\\x1b]8;;http://x" in shown
    assert "\x1b[2J" not in shown
    assert "\x1b]8" not in shown
    assert "\x9b" not in shown
    assert "\x1b[1" in shown  # our own style passes


def test_json_for_machines_is_ascii(capsys: pytest.CaptureFixture[str]):
    print_json({"text": "\x9b2J\u202e\ud800é"})
    shown = capsys.readouterr().out
    assert shown.isascii()
    assert json.loads(shown) == {"text": "\x9b2J\u202e\ud800é"}


_SHOW = """
import sys
from tools.reporting import terminal
terminal.prepare_streams()
print("skill 1% → 2%  ▁▂▇█  déjà \\ud800")
from rich.table import Table
table = Table("name", "why", box=None)
table.add_row("n" * 150, "w" * 150)
terminal.console().print(table)
"""


@pytest.mark.parametrize("encoding", ["ascii", "utf-8", *in_soak("iso-8859-1", "cp1252")])
def test_any_encoding_and_a_pipe_take_what_we_print(encoding: str):
    environment = os.environ | {"PYTHONIOENCODING": encoding, "PYTHONPATH": str(REPOSITORY)}
    environment.pop("COLUMNS", None)
    done = subprocess.run(
        [sys.executable, "-c", _SHOW], capture_output=True, cwd=REPOSITORY, env=environment, timeout=60
    )
    assert done.returncode == 0, done.stderr.decode()
    shown = done.stdout.decode(encoding)
    first, _, row = shown.splitlines()
    if encoding == "utf-8":
        assert first == "skill 1% → 2%  ▁▂▇█  déjà \\ud800"
    else:
        assert first.startswith("skill 1% > 2%  ._^#  d")
    assert "n" * 150 in row
    assert "w" * 150 in row


@pytest.mark.parametrize("encoding", ["ascii", *in_soak("iso-8859-1")])
def test_the_view_shows_a_run_on_any_terminal(tmp_path: Path, encoding: str):
    write_run(tmp_path)
    environment = os.environ | {"PYTHONIOENCODING": encoding, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [sys.executable, "-m", "tools.view", tmp_path], capture_output=True, cwd=REPOSITORY, env=environment, timeout=60
    )
    assert done.returncode == 0, done.stderr.decode()
    assert "held-out 25% > 75%" in done.stdout.decode(encoding)
