"""What a machine lacks for confinement, and what each version of the kernel's interfaces is asked for.

Tests of confined processes are skipped by what `missing` says: here it has to be right.
"""

from __future__ import annotations

import os
import platform
import struct
import sys
from pathlib import Path
from typing import Any

import pytest

from rewards.sandbox import confinement
from rewards.sandbox.confinement import ConfinementError, missing, seal

READ = 1 << 2 | 1 << 3


@pytest.fixture
def whole(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine that lacks nothing."""
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(os.path, "exists", lambda path: path == "/proc/sys/kernel/seccomp")
    monkeypatch.setattr(confinement, "_landlock_version", lambda: 1)
    return monkeypatch


def test_a_machine_that_has_all_lacks_nothing(whole: pytest.MonkeyPatch) -> None:
    assert missing() == ""
    whole.setattr(platform, "machine", lambda: "aarch64")
    assert missing() == ""


@pytest.mark.parametrize(
    ("where", "name", "value", "said"),
    [
        (sys, "platform", "darwin", "confinement needs Linux, this is darwin"),
        (
            platform,
            "machine",
            lambda: "riscv64",
            "confinement knows the system calls of x86_64 and aarch64, this is riscv64",
        ),
        (os.path, "exists", lambda path: False, "the kernel has no seccomp (CONFIG_SECCOMP_FILTER)"),
        (confinement, "_landlock_version", lambda: 0, "the kernel has no Landlock (Linux 5.13 or later"),
    ],
    ids=["system", "machine", "seccomp", "landlock"],
)
def test_what_is_lacking_is_told_and_nothing_is_sealed_halfway(
    whole: pytest.MonkeyPatch, where: Any, name: str, value: Any, said: str
) -> None:
    asked: list[str] = []
    for step in ("_restrict_files", "_filter_calls", "_libc"):
        whole.setattr(confinement, step, lambda *_, step=step: asked.append(step))
    whole.setattr(where, name, value)
    assert missing().startswith(said)
    with pytest.raises(ConfinementError) as raised:
        seal(())
    assert (str(raised.value), asked) == (missing(), [])


@pytest.mark.parametrize(
    ("version", "files", "network", "scopes", "size"),
    [
        (1, 13, 0, 0, 8),
        (2, 14, 0, 0, 8),
        (3, 15, 0, 0, 8),
        (4, 15, 3, 0, 16),
        (5, 16, 3, 0, 16),
        (6, 16, 3, 3, 24),
        (9, 16, 3, 3, 24),
    ],
)
def test_each_kernel_is_asked_for_all_that_it_can_refuse(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: int, files: int, network: int, scopes: int, size: int
) -> None:
    """All of the files, network and signals that the version knows (linux/landlock.h); reading is given back."""
    asked: list[tuple[Any, ...]] = []

    def call(number: int, *arguments: Any) -> int:
        asked.append((number, *arguments))
        return os.open(os.devnull, os.O_RDONLY) if number == 444 else 0

    monkeypatch.setattr(confinement, "_landlock_version", lambda: version)
    monkeypatch.setattr(confinement, "_call", call)
    before = set(os.listdir("/proc/self/fd"))
    confinement._restrict_files([str(tmp_path), os.sep])
    assert set(os.listdir("/proc/self/fd")) == before
    create, first, second, restrict = asked
    assert create == (444, struct.pack("QQQ", (1 << files) - 1, network, scopes), size, 0)
    ruleset = restrict[1]
    assert restrict == (446, ruleset, 0)
    for rule in (first, second):
        assert rule[:3] == (445, ruleset, 1)
        assert struct.unpack("=Qi", rule[3])[0] == READ
