"""The Python that runs inside: one that every user of the machine can read, and the program it is given."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from dataclasses import dataclass
from importlib.resources import files

from rewards.code.sandbox.limits import SandboxError

#: modules of the program, in the order in which they import each other
_MODULES = (
    "text", "link", "walls", "values", "answer", "spawner", "process", "remote", "compare", "pytest_stand_in", "proxy",
    "tester", "start",
)  # fmt: skip
_PACKAGE = "rewards.code.guest"
_LEAST_VERSION = (3, 11)
_OTHERS = ("/usr/bin/python3", "/usr/local/bin/python3")
_TIMEOUT_S = 60.0

_ASK = "import json, sys; print(json.dumps([sys.version_info[:2], sys.base_prefix]))"
_COMPILE = """
import json, marshal, sys
sources = json.load(sys.stdin)
codes = [(name, compile(source, name, "exec", dont_inherit=True, optimize=2)) for name, source in sources]
sys.stdout.buffer.write(marshal.dumps(codes))
"""
#: reads the compiled modules from descriptor 0, which goes on with what `rewards.code.guest.start` reads
BOOTSTRAP = f"""
import marshal, os, sys
def read(length):
    parts = b""
    while len(parts) < length:
        parts += os.read(0, length - len(parts)) or sys.exit(3)
    return parts
package = sys.modules["{_PACKAGE}"] = type(sys)("{_PACKAGE}")
for name, code in marshal.loads(read(int.from_bytes(read(4), "big"))):
    module = sys.modules["{_PACKAGE}." + name] = type(sys)("{_PACKAGE}." + name)
    setattr(package, name, module)
    exec(code, vars(module))
sys.modules["{_PACKAGE}.start"].main()
"""


@dataclass(frozen=True)
class Interpreter:
    """A Python and the program for it.

    Attributes:
      path: of the executable.
      prefix: the folder it is installed in.
      program: the compiled modules, with their length before them.
    """

    path: str
    prefix: str
    program: bytes


def find_interpreter(*, for_others: bool) -> Interpreter:
    """The Python of this process, or the system's where others can't read this one.

    Args:
      for_others: the sandbox runs as another user.

    Raises:
      SandboxError: there is none.
    """
    own = os.path.realpath(getattr(sys, "_base_executable", sys.executable) or sys.executable)
    tried = []
    for path in (own, *_OTHERS):
        if not os.path.exists(path) or (for_others and not (open_to_all(path) and open_to_all(_library(path)))):
            tried.append(path)
            continue
        version, prefix = json.loads(_run(path, _ASK, b""))
        if tuple(version) >= _LEAST_VERSION:
            return Interpreter(path, prefix, _compiled(path))
        tried.append(f"{path} (Python {version[0]}.{version[1]})")
    raise SandboxError(
        f"no Python for the sandbox: tried {', '.join(tried)}; answers run as a user of their own, so that Python "
        f"{_LEAST_VERSION[0]}.{_LEAST_VERSION[1]} or newer must be readable by all: install the system's python3"
    )


def _library(path: str) -> str:
    """Some folder of the installation that holds Python's library."""
    return os.path.join(os.path.dirname(os.path.dirname(os.path.realpath(path))), "lib")


def open_to_all(path: str) -> bool:
    """Whether every user can reach and read a file or folder."""
    path = os.path.realpath(path)
    if not os.path.exists(path) or not os.stat(path).st_mode & stat.S_IROTH:
        return False
    while True:
        if not os.stat(path).st_mode & stat.S_IXOTH:
            return False
        if path == os.sep:
            return True
        path = os.path.dirname(path)


def _compiled(path: str) -> bytes:
    sources = [(name, files(_PACKAGE).joinpath(f"{name}.py").read_text()) for name in _MODULES]
    code = _run(path, _COMPILE, json.dumps(sources).encode())
    return len(code).to_bytes(4, "big") + code


def _run(path: str, code: str, given: bytes) -> bytes:
    try:
        done = subprocess.run(
            [path, "-I", "-S", "-B", "-c", code],
            input=given,
            capture_output=True,
            env={},
            timeout=_TIMEOUT_S,
            check=True,
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise SandboxError(f"{path} can't be used for the sandbox: {error}") from None
    return done.stdout
