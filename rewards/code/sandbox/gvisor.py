"""The command that starts a program under gVisor's runsc: a kernel of its own stands between it and the machine's.

The program's system calls reach gVisor's kernel: an ordinary process, which a filter of its own leaves a few calls of
the machine's. What the program sees is an OCI bundle: /usr read-only, empty /proc and /sys, no network, a small /tmp
in memory. runsc runs without root, as the sandbox's own user; the program runs as nobody, without capabilities.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rewards.code.sandbox.folders import open_folder
from rewards.code.sandbox.interpreter import BOOTSTRAP, Interpreter, open_to_all
from rewards.code.sandbox.limits import Limits, SandboxError
from rewards.code.sandbox.system_calls import knows, outer_filter

_INSTALLED = ("/usr/local/bin/runsc", "/usr/bin/runsc")
_LINKED = ("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
#: gVisor shows files of its own there, unless it is told of others; nobody may open these
_CLOSED = ("/proc", "/sys", "/dev/shm", "/dev/net")
_INSIDE_ID = 65534
_NAMESPACES = ("pid", "network", "ipc", "uts", "mount")
_CAPABILITIES = ("bounding", "effective", "inheritable", "permitted", "ambient")
_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Runsc:
    """Starts Python under runsc; implements `rewards.code.sandbox.box.Tier`.

    Attributes:
      path: of runsc.
      options: that this build takes.
      folder: holds the bundles, and what runsc notes of each sandbox. All may read it.
      inner_filter: of system calls, which the first process inside sets for itself and all that it starts.
    """

    path: str
    options: tuple[str, ...]
    name: str
    interpreter: Interpreter
    folder: tempfile.TemporaryDirectory[str]
    inner_filter: bytes
    filter: bytes = b""
    unknown_limits: tuple[str, ...] = ("MSGQUEUE",)
    own_processes: int = 160
    own_bytes: int = 256 << 20

    def command(self, limits: Limits, filter_descriptor: int, name: str) -> list[str]:
        """The command line of a sandbox; the filter's descriptor is not used."""
        state, bundle = str(self._state(name)), str(self._bundle(limits))
        return [self.path, "--root", state, *self.options, "run", "--bundle", bundle, name]

    def ended(self, name: str) -> None:
        """Removes what runsc noted of a sandbox that is gone."""
        shutil.rmtree(self._state(name), ignore_errors=True)

    def close(self) -> None:
        """Removes the bundles."""
        self.folder.cleanup()

    def _state(self, name: str) -> Path:
        return Path(self.folder.name) / "states" / name

    def _bundle(self, limits: Limits) -> Path:
        """The folder that says what runs and what it sees; written once, since a pool has one kind of limits."""
        bundle = Path(self.folder.name) / f"bundle-{limits.scratch_bytes}"
        if bundle.exists():
            return bundle
        made = Path(tempfile.mkdtemp(dir=self.folder.name))
        root = made / "rootfs"
        for folder in ("usr", "proc", "sys", "tmp", "dev"):
            (root / folder).mkdir(parents=True)
        binds = ["/usr"]
        for path in map(Path, _LINKED):
            if path.is_symlink():
                (root / path.name).symlink_to(os.readlink(path))
            elif path.is_dir():
                (root / path.name).mkdir()
                binds.append(str(path))
        if not f"{self.interpreter.prefix}/".startswith("/usr/"):
            (root / self.interpreter.prefix.lstrip("/")).mkdir(parents=True)
            binds.append(self.interpreter.prefix)
        (made / "config.json").write_text(json.dumps(_specification(self.interpreter, limits, binds)))
        for path in (made, *made.rglob("*")):
            if not path.is_symlink():
                path.chmod(0o755 if path.is_dir() else 0o644)
        return made.rename(bundle)


def _specification(interpreter: Interpreter, limits: Limits, binds: Sequence[str]) -> Mapping[str, Any]:
    """As the OCI runtime specification has it: https://github.com/opencontainers/runtime-spec, config.md.

    Args:
      binds: folders of the machine that are shown.
    """
    shown = [{"destination": path, "type": "bind", "source": path, "options": ["rbind", "ro"]} for path in binds]
    hidden = ["ro", "size=4096", "mode=0"]
    closed = [{"destination": path, "type": "tmpfs", "source": "tmpfs", "options": hidden} for path in _CLOSED]
    size = [f"size={limits.scratch_bytes}", "mode=1777"]
    scratch = {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": size}
    return {
        "ociVersion": "1.0.2",
        "process": {
            "terminal": False,
            "user": {"uid": _INSIDE_ID, "gid": _INSIDE_ID},
            "args": [interpreter.path, *("-s", "-S", "-P", "-B", "-X", "utf8", "-c", BOOTSTRAP)],
            "env": ["PYTHONHASHSEED=0"],
            "cwd": "/tmp",
            "capabilities": {kind: [] for kind in _CAPABILITIES},
            "noNewPrivileges": True,
        },
        "root": {"path": "rootfs", "readonly": True},
        "hostname": "sandbox",
        "mounts": [*shown, *closed, scratch],
        "linux": {"namespaces": [{"type": kind} for kind in _NAMESPACES]},
    }


def find_runsc(interpreter: Interpreter, *, for_others: bool) -> Runsc:
    """runsc of this machine.

    Args:
      for_others: another user than that of this process starts it.

    Raises:
      SandboxError: there is none, it does not answer, or this machine's system calls are not known.
    """
    if not knows(platform.machine()):
        raise SandboxError(f"the sandbox knows the system calls of x86_64 and aarch64, this is {platform.machine()}")
    found = [path for path in (shutil.which("runsc"), *_INSTALLED) if path and os.access(path, os.X_OK)]
    if not found:
        raise SandboxError(
            'task.sandbox is "runsc", and runsc is missing: install gVisor '
            '(https://gvisor.dev/docs/user_guide/install), or set task.sandbox to "bubblewrap"'
        )
    path = os.path.realpath(found[0])
    version = _said(path, "--version").partition("\n")[0].removeprefix("runsc version ").strip()
    folder = open_folder("weir-runsc")
    if for_others and not open_to_all(folder.name):
        folder.cleanup()
        raise SandboxError(
            f"the sandbox's user can't reach {tempfile.gettempdir()}: set TMPDIR to a folder that all may read"
        )
    states = Path(folder.name) / "states"
    states.mkdir()
    states.chmod(0o1777)  # each sandbox has a user of its own, and makes its folder there
    calls = outer_filter(platform.machine())
    return Runsc(path, _options(path), f"runsc {version}", interpreter, folder, calls)


def _options(path: str) -> tuple[str, ...]:
    """Options of `runsc run` without root and network; builds differ in the names of two."""
    overlay = ("--overlay2=none",) if "-overlay2" in _said(path, "flags") else ("--overlay=false",)
    platforms = _said(path, "help", "platforms").split()
    traps = "systrap" if "systrap" in platforms else "ptrace"
    return ("--rootless", f"--platform={traps}", "--network=none", "--ignore-cgroups", *overlay)


def _said(path: str, *arguments: str) -> str:
    try:
        done = subprocess.run(
            [path, *arguments], capture_output=True, env={}, timeout=_TIMEOUT_S, check=False, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise SandboxError(f"{path} can't be used for the sandbox: {error}") from None
    return (done.stdout + done.stderr).decode("utf-8", "replace")
