"""What can be known of the machine before anything starts: folders, disks, ports, files, memory, clock."""

from __future__ import annotations

import os
import resource
import shutil
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from serving_bridge.checks.findings import Finding

_GB = 1e9
_SPARE_FILES = 128
_MIN_COLUMNS = 60


def folder_findings(folders: Mapping[str, Path]) -> Iterator[Finding]:
    """Whether each folder, by the setting that names it, is there or can be made, and can be written to."""
    for setting, folder in folders.items():
        existing = _existing(folder)
        if not existing.is_dir():
            yield Finding(setting, f"a folder at {folder}", f"{existing} is a file", "name another place")
        elif not os.access(existing, os.W_OK | os.X_OK):
            what = "it is not" if existing == folder else f"{existing} is not"
            yield Finding(setting, f"{folder} to be writable", f"{what}", "change its rights, or name another place")


def file_findings(setting: str, path: Path) -> Iterator[Finding]:
    """Whether a file that will be written, or a new one in its place, can be."""
    if path.is_dir():
        yield Finding(setting, f"a file at {path}", "a folder", "name a file, or another place")
    elif path.exists() and not os.access(path, os.R_OK | os.W_OK):
        yield Finding(setting, f"{path} to be readable and writable", "it is not", "change its rights")
    else:
        yield from folder_findings({setting: path.parent})


def disk_findings(needs: Sequence[tuple[str, Path, float, float]]) -> Iterator[Finding]:
    """Whether the disks have room.

    Args:
      needs: (setting, folder, bytes without which it can't go on, bytes that it may take in time).
    """
    disks: dict[int, list[tuple[str, Path, float, float]]] = {}
    for need in needs:
        disks.setdefault(_existing(need[1]).stat().st_dev, []).append(need)
    for shared in disks.values():
        settings, folder = ", ".join(setting for setting, *_ in shared), _existing(shared[0][1])
        free = shutil.disk_usage(folder).free
        least, most = sum(need[2] for need in shared), sum(need[3] for need in shared)
        if free < most:
            certain = free < least
            yield Finding(
                settings,
                f"{(least if certain else most) / _GB:.1f} GB free {'at once' if certain else 'in time'}",
                f"{free / _GB:.1f} GB free on the disk of {folder}",
                "make room, name a folder on another disk, or lower learner.checkpoint.keep or store.keep_versions",
                "error" if certain else "warning",
                may_heal=True,
            )


def port_findings(host: str, port: int, count: int, *, setting: str = "serving.port") -> Iterator[Finding]:
    """Whether `count` ports from `port` on are free; nothing is known of free ones that are picked (port 0)."""
    for number in range(port, port + count) if port else ():
        try:
            family, _, _, _, address = socket.getaddrinfo(host, number, type=socket.SOCK_STREAM)[0]
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
        except OSError as error:
            yield Finding(
                setting,
                f"port {number} of {host} to be free",
                str(error.strerror or error),
                "stop what uses it, set another one, or 0 for free ones",
                may_heal=True,
            )


def open_files_findings(*, least: int, most: int) -> Iterator[Finding]:
    """Whether a process may open as many files and connections as it may come to need.

    Args:
      least, most: connections that it has from the beginning, and at most.
    """
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= most + _SPARE_FILES:
        return
    yield Finding(
        "ulimit -n",
        f"at least {most + _SPARE_FILES} open files, for {most} answers at the same time",
        str(soft),
        "raise the limit, or lower rollout.max_concurrency or rollout.concurrent_groups",
        "error" if soft < least + _SPARE_FILES else "warning",
    )


def memory_findings(needed_gib: float, memory_gib: float | None) -> Iterator[Finding]:
    """Whether everything that runs on this machine's CPU fits into its memory, by a rough estimate."""
    if memory_gib is not None and needed_gib > memory_gib:
        yield Finding(
            "memory",
            f"about {needed_gib:.1f} GiB for the learner and its servers",
            f"{memory_gib:.1f} GiB",
            "lower serving.replicas, serving.cpu_kv_cache_gib or learner.microbatch_rows, or take a smaller model",
            "warning",
        )


def clock_findings(now_s: float, *, built_s: float, server_s: float | None, lease_s: float) -> Iterator[Finding]:
    """Whether the clock can be right, and agrees with the database server's.

    Args:
      built_s: when this program was written to this machine.
      server_s: what the server's clock said at `now_s`, if there is one.
      lease_s: the shortest lease, after which one process takes over from another.
    """
    if now_s < built_s:
        yield Finding(
            "clock",
            f"a time after {_day(built_s)}, when this program was installed",
            _day(now_s),
            "set this machine's clock: leases and heartbeats go by it",
        )
    if server_s is not None and abs(now_s - server_s) > lease_s / 4:
        yield Finding(
            "clock",
            f"that of the database server, within {lease_s / 4:g} s",
            f"{abs(now_s - server_s):.0f} s {'ahead of' if now_s > server_s else 'behind'} it",
            "set both by NTP: leases of groups and prompts (store.lease_s, store.claim_lease_s) go by the clock",
            "error" if abs(now_s - server_s) > lease_s else "warning",
        )


def terminal_findings(*, is_terminal: bool, columns: int, encoding: str) -> Iterator[Finding]:
    """What a person will not see of the live view."""
    if is_terminal and columns < _MIN_COLUMNS:
        yield Finding("terminal", f"{_MIN_COLUMNS} columns", str(columns), "widen it: the view is cut", "note")
    if is_terminal and encoding.lower().replace("-", "") != "utf8":
        yield Finding("terminal", "UTF-8", encoding, "set LANG: charts are drawn with plain characters", "note")


def _existing(path: Path) -> Path:
    """The path itself, or the nearest folder above it that is there."""
    for candidate in (path, *path.parents):
        if candidate.exists() or candidate.is_symlink():
            return candidate
    return Path("/")


def _day(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))
