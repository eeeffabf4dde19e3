"""Tries, as an answer would, what no answer may be able to do; a sandbox that lets one through is not used.

Each attempt runs in a sandbox of the very pool that judges answers. The list is what was seen to work somewhere: as
root through bubblewrap, in containers with a wider system, without a control group.
"""

from __future__ import annotations

import json
import os
from typing import Any

from rewards.code.sandbox.limits import SandboxError
from rewards.code.sandbox.pool import SandboxPool

_DEADLINE_S = 30.0
_MAX_BYTES = 1 << 16

#: prints the attempts that were not refused
_ATTEMPTS = """
import ctypes, json, mmap, os, socket, sys
libc = ctypes.CDLL(None, use_errno=True)
x86 = os.uname().machine == "x86_64"

def call(number, *arguments):
    if libc.syscall(ctypes.c_long(number), *(ctypes.c_long(a) for a in arguments)) < 0:
        raise OSError(ctypes.get_errno(), "refused")

def read(path):
    os.close(os.open(path, os.O_RDONLY))

def write(path):
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT))

def fill(size):
    with open("/tmp/full", "wb") as file:
        for _ in range(size >> 20):
            file.write(bytes(1 << 20))

def fill_many():
    for number in range(64):
        with open(f"/tmp/part{number}", "wb") as file:
            for _ in range(8):
                file.write(bytes(1 << 20))

def is_root():
    if 0 not in (os.getuid(), os.geteuid(), os.getgid()):
        raise OSError

def environment():
    if not os.environ:
        raise OSError

def descriptors():
    known = 0
    for number in range(256):
        try:
            os.fstat(number)
            known += 1
        except OSError:
            pass
    if known <= 3:
        raise OSError

def host(path):
    if not os.path.exists(path):
        raise OSError

attempts = {
    "a socket": socket.socket,
    "a pair of sockets": socket.socketpair,
    "another process": lambda: os.fork() or os._exit(0),
    "a signal to the tests": lambda: os.kill(os.getppid(), 0),
    "a signal to all": lambda: os.kill(-1, 0),
    "limits of another process": lambda: call(302 if x86 else 261, os.getppid(), 7, 0, 0),
    "tracing": lambda: call(101 if x86 else 117, 16, os.getppid(), 0, 0),
    "reading another process": lambda: call(310 if x86 else 270, os.getppid(), 0, 0, 0, 0, 0),
    "new namespaces": lambda: call(272 if x86 else 97, 0x10000000),
    "io_uring": lambda: call(425, 1, 0),
    "keys": lambda: call(250 if x86 else 219, 0, -3, 0),
    "bpf": lambda: call(321 if x86 else 280, 0, 0, 0),
    "the clock": lambda: call(227 if x86 else 112, 0, 0),
    "a mount": lambda: call(165 if x86 else 40, 0, 0, 0, 0, 0),
    "another root": lambda: os.chroot("/tmp"),
    "/proc": lambda: read("/proc/self/status"),
    "/sys": lambda: read("/sys/kernel"),
    "/etc": lambda: read("/etc/passwd"),
    **{place: lambda place=place: host(place) for place in PLACES},
    "writing to /usr": lambda: write("/usr/weir"),
    "writing to /": lambda: write("/weir"),
    "writing to /dev": lambda: write("/dev/weir"),
    "a folder in /": lambda: os.mkdir("/weir-folder"),
    "shared memory": lambda: write("/dev/shm/weir"),
    "a memory file": lambda: os.close(os.memfd_create("weir")),
    "being root": is_root,
    "becoming root": lambda: os.setuid(0),
    "an environment": environment,
    "open files": descriptors,
    "endless memory": lambda: mmap.mmap(-1, MEMORY),
    "an endless file": lambda: fill(FILE),
    "endless files": fill_many,
    "running a program": lambda: os.execv("/bin/true", ["true"]),
}
held = []
for name, attempt in attempts.items():
    try:
        attempt()
        held.append(name)
    except (OSError, MemoryError, OverflowError):
        pass
print(json.dumps(held))
"""


def check(pool: SandboxPool) -> None:
    """Proves that a pool's sandboxes hold, and that right and wrong answers are told apart.

    Raises:
      SandboxError: one doesn't start, or lets something through.
    """
    limits = pool.limits
    values = {"PLACES": _places(pool.prefix), "MEMORY": limits.address_bytes, "FILE": limits.file_bytes + (2 << 20)}
    code = "".join(f"{name} = {value!r}\n" for name, value in values.items()) + _ATTEMPTS
    program = {"kind": "program", "stdin": "", "stdout": None, "limit": _MAX_BYTES}
    outcome = _only(pool, code, program)
    if held := outcome["why"] or _got_through(outcome["printed"]):
        raise SandboxError(f"the sandbox ({pool.walls}) doesn't hold: {held}; code is not run here")
    call = {"kind": "call", "fn": "f", "args": [2], "kwargs": {}, "expected": 4}
    judged = [not _only(pool, f"def f(x): return {body}", call)["why"] for body in ("x * x", "x + 3", "exit(0)")]
    if judged != [True, False, False]:
        raise SandboxError(f"the sandbox ({pool.walls}) doesn't tell right answers from wrong ones: {judged}")


def _got_through(printed: str) -> str:
    """The attempts that were not refused."""
    try:
        return ", ".join(json.loads(printed.splitlines()[-1]))
    except (ValueError, TypeError, IndexError):
        return "an attempt, perhaps to run another program, took the place of the others"


def _places(prefix: str) -> list[str]:
    """Folders of the host that are not to be seen inside."""
    shown = ("/usr", "/tmp", "/dev", "/lib", "/bin", prefix)
    named = {
        os.path.realpath(path) for path in (os.getcwd(), os.path.expanduser("~"), "/root", "/home", "/run", "/var")
    }
    return sorted(
        path for path in named if not any(f"{place}/".startswith(f"{path}/".replace("//", "/")) for place in shown)
    )


def _only(pool: SandboxPool, code: str, case: dict[str, Any]) -> dict[str, Any]:
    request = {"code": code, "prelude": "", "classes": "", "names": ["f"], "modules": [], "helpers": {}}
    report = pool.run({**request, "cases": [case]}, _DEADLINE_S)
    return report.outcomes[0] if report.outcomes else {"why": report.ended, "printed": ""}
