"""Small file systems of their own, which can be filled, and what a command says of a full one."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tools.assembly import DISK_STATUS

KEPT = "nothing that was accepted is lost"


@dataclass
class Disk:
    """A small file system of its own."""

    folder: Path

    @property
    def _filler(self) -> Path:
        return self.folder / "filler"

    def fill(self) -> None:
        def write_on() -> None:
            while True:
                file.write(bytes(4096))

        with self._filler.open("ab", buffering=0) as file, pytest.raises(OSError, match="No space left"):
            write_on()

    def free(self) -> None:
        self._filler.unlink()

    def leave(self, pages: int) -> None:
        """Frees some of what was filled."""
        os.truncate(self._filler, self._filler.stat().st_size - 4096 * pages)

    def resize(self, size: str) -> None:
        subprocess.run(["mount", "-o", f"remount,size={size}", str(self.folder)], check=True)


@pytest.fixture
def make_disk() -> Iterator[Callable[[Path, str], Disk]]:
    mounted: list[Path] = []

    def make(folder: Path, size: str) -> Disk:
        folder.mkdir(parents=True, exist_ok=True)
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "weir-test", str(folder)]
        if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("small file systems can't be mounted here: it takes root and CAP_SYS_ADMIN")
        mounted.append(folder)
        return Disk(folder)

    yield make
    for folder in mounted:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def the_line(capfd: pytest.CaptureFixture[str], status: object) -> str:
    """The only thing said on stderr."""
    assert status == DISK_STATUS == 74
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert KEPT in line
    return line
