"""Errors that a person can do something about end a command in one line, with a status of their own."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from learner_jax.checkpoints.checkpoints import CheckpointError
from serving_bridge.database.database import DiskFullError
from serving_bridge.processes.supervisor import ProcessFailedError
from serving_bridge.weights.store import StoreError
from tests.conftest import REPOSITORY
from tests.support.small_disks import Disk, make_disk, the_line
from tools.assembly import DISK_STATUS, clear_errors

__all__ = ["make_disk"]  # a fixture

TENSORSTORE = "RESOURCE_EXHAUSTED: Failed to write 9217 bytes to file 14: No space left on device [os_error_code='28']"


def raised(error: BaseException, cause: BaseException | None = None) -> BaseException:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (OSError(errno.ENOSPC, "", "/a/b"), "/a/b can't be written or read: "),
        (OSError(errno.EIO, os.strerror(errno.EIO), "/a/b"), "/a/b can't be written or read: Input/output error"),
        (OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)), "a file can't be written or read: Disk quota exceeded"),
        (raised(StoreError("no space for version 3"), OSError(errno.ENOSPC, "")), "no space for version 3"),
        (raised(CheckpointError("not written"), ValueError(TENSORSTORE)), "not written"),
        (DiskFullError("/a/state.db: full"), "/a/state.db: full"),
        (ProcessFailedError("process learner ended with status 74", 74), "process learner ended with status 74"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_errors_of_disks_have_a_status_of_their_own(
    error: BaseException, text: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended, clear_errors():
        raise error
    assert the_line(capfd, ended.value.code).startswith(f"error: {text}")


@pytest.mark.parametrize(
    "error",
    [
        CheckpointError("there is none"),
        ProcessFailedError("process learner ended with status 1", 1),
        raised(StoreError("unreadable"), PermissionError(errno.EACCES, "", "/a/b")),
        raised(CheckpointError("not written"), ValueError("os_error_code='2'")),
    ],
    ids=lambda error: str(error),
)
def test_other_clear_errors_keep_theirs(error: BaseException, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended, clear_errors():
        raise error
    assert (ended.value.code, capfd.readouterr().err) == (1, f"error: {error}\n")


@pytest.mark.parametrize("error", [FileNotFoundError(errno.ENOENT, ""), ValueError("os_error_code='28'")])
def test_what_is_no_disk_error_keeps_its_traceback(error: Exception) -> None:
    with pytest.raises(type(error)), clear_errors():
        raise error


def test_the_status_is_right_where_even_stderr_is_on_the_full_disk(
    make_disk: Callable[[Path, str], Disk], tmp_path: Path
):
    disk = make_disk(tmp_path / "disk", "1m")
    code = "from tools.assembly import clear_errors\nwith clear_errors():\n    raise OSError(28, 'No space left', '/a')"
    with (disk.folder / "log").open("ab") as log:
        disk.fill()
        done = subprocess.run([sys.executable, "-c", code], stderr=log, stdout=log, cwd=REPOSITORY, check=False)
    assert done.returncode == DISK_STATUS


def test_ctrl_c_is_told_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught, clear_errors():
        raise KeyboardInterrupt
    assert caught.value.code == 130
    assert capsys.readouterr().err == "stopped by Ctrl-C\n"
