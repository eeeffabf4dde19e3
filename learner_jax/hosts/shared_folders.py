"""Proves at start that the hosts of a learner see one folder, by files that each writes and the others look for."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Sequence
from pathlib import Path

from learner_jax.hosts.hosts import HostError, Hosts

#: How long a host looks for another's file; network file systems may show it late.
_SEEN_WITHIN_S = 10.0
_POLL_S = 0.1


def require_shared(hosts: Hosts, folder: Path, setting: str) -> None:
    """Returns once every host has found the leader's file in its folder, and the leader every host's.

    All hosts must call it; the folder is made where it is missing. One host alone has nothing to prove.

    Args:
      folder: where this host sees it.
      setting: that names the folder, for the error.
    Raises:
      HostError: on all hosts alike: one of them sees another folder, or can't write there.
    """
    if hosts.count == 1:
        return
    what = f"the folder of {setting}"
    nonce = hosts.agree(uuid.uuid4().hex, f"how to look for {what}")
    own = _file(folder, nonce, hosts.index)
    try:
        places = hosts.gather([str(folder), _write(own)], f"where {what} is")
        others = range(1, hosts.count) if hosts.is_leader else [0]
        able = not any(problem for _, problem in places)
        missing = _missing(hosts, folder, nonce, others) if able else []
        views = hosts.gather(missing, f"who shares {what}")
    finally:
        with contextlib.suppress(OSError):
            own.unlink(missing_ok=True)
    for host, (place, problem) in enumerate(places):
        if problem:
            raise HostError(f"host {host} of {hosts.count} can't write in {place} ({setting}): {problem}")
    apart = sorted({*views[0], *(host for host, view in enumerate(views) if view and host)})
    if apart:
        shown = ", ".join(f"host {host} at {places[host][0]}" for host in apart)
        raise HostError(
            f"{what} is not the same on all hosts: host 0 has it at {places[0][0]}, but {shown} sees another folder: "
            f"give an absolute path of a disk that all hosts share ({setting}), or start all in one working directory"
        )


def _file(folder: Path, nonce: str, host: int) -> Path:
    return folder / f".weir-host-{host}-{nonce}"


def _write(path: Path) -> str:
    """Makes a file; returns what went wrong, empty if nothing did."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    except OSError as error:
        return str(error)
    return ""


def _missing(hosts: Hosts, folder: Path, nonce: str, others: Sequence[int]) -> list[int]:
    """Hosts whose file does not appear in the folder in time."""
    missing = list(others)
    with (
        contextlib.suppress(_NotSeenError),
        hosts.waits.waiting(
            f"files of hosts {missing} in {folder}", on="the disk", limit_s=_SEEN_WITHIN_S, error=_NotSeenError
        ) as wait,
    ):
        while missing := [host for host in missing if not _file(folder, nonce, host).exists()]:
            wait.sleep(_POLL_S)
    return missing


class _NotSeenError(Exception):
    """A host's file did not appear."""
