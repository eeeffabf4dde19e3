"""schemathesis over a gateway: requests drawn from its published schema, and answers held against it."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCHEMATHESIS = "schemathesis==4.32.5"
#: fields depend on each other, and prompts must fit: not all that fits the schema is taken
_LEFT_OUT = "positive_data_acceptance"


def schemathesis(folder: Path) -> str:
    """The program; installed beside the tests, or named by WEIR_SCHEMATHESIS."""
    if named := os.environ.get("WEIR_SCHEMATHESIS"):
        return named
    for command in (
        [sys.executable, "-m", "venv", str(folder)],
        [str(folder / "bin" / "pip"), "install", "-q", SCHEMATHESIS],
    ):
        done = subprocess.run(command, capture_output=True, text=True, timeout=500)
        if done.returncode:
            pytest.skip(f"schemathesis can't be installed: {done.stderr[-200:]}")
    return str(folder / "bin" / "schemathesis")


async def fuzzed(program: str, folder: Path, url: str, examples: int) -> tuple[int, str]:
    """(status, output) of schemathesis over a gateway."""
    command = [program, "run", f"{url}/openapi.json", "--url", url, "--max-examples", str(examples), "--seed", "1"]
    command += ["--phases", "examples,coverage,fuzzing", "--checks", "all", "--exclude-checks", _LEFT_OUT]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    process = await asyncio.create_subprocess_exec(
        *command,
        "--suppress-health-check",
        "all",
        cwd=folder,
        env=environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await asyncio.wait_for(process.communicate(), 900)
    return process.returncode or 0, output.decode()
