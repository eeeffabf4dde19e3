"""Takes from the calling process everything that scoring an answer doesn't need: files, network, processes, signals.

`seal` combines three mechanisms of Linux that need neither root nor another program: resource limits, Landlock (reading
below the folders of Python's libraries only, writing nowhere) and a seccomp filter that allows some fifty system calls
and refuses every other with EPERM. None of them can be taken back, and none reaches the process's parent.

Not covered: faults of the kernel behind the allowed calls, side channels, and the processor time until the deadline.
For tenants who attack the kernel a virtual machine is the answer.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import resource
import struct
import sys
import sysconfig
from collections.abc import Iterable

from learner_jax.runtime import WeirError

_PR_SET_PDEATHSIG = 1
_PR_SET_SECCOMP = 22
_PR_SET_NO_NEW_PRIVS = 38
_SECCOMP_MODE_FILTER = 2
_SIGKILL = 9

# Landlock's three system calls have the same numbers on all machines (linux/landlock.h).
_LANDLOCK_CREATE, _LANDLOCK_ADD_RULE, _LANDLOCK_RESTRICT = 444, 445, 446
_LANDLOCK_VERSION_FLAG = 1
_LANDLOCK_READ_FILE, _LANDLOCK_READ_DIR = 1 << 2, 1 << 3
#: file accesses that exist from each version of the interface on
_LANDLOCK_FS = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 5: (1 << 16) - 1}

_ALLOW, _KILL, _REFUSE = 0x7FFF0000, 0x80000000, 0x00050000 | errno.EPERM
_LOAD, _JUMP_EQUAL, _JUMP_SET, _JUMP_GE, _RETURN = 0x20, 0x15, 0x45, 0x35, 0x06
#: openat's flags with which a file would be written or made: write, read-write, create, truncate, append, tmpfile
_WRITING_FLAGS = 0o1 | 0o2 | 0o100 | 0o1000 | 0o2000 | 0o20000000

#: audit number of the architecture, number of openat, allowed calls
_CALLS: dict[str, tuple[int, int, dict[str, int]]] = {
    "x86_64": (
        0xC000003E,
        257,
        dict(read=0, write=1, close=3, stat=4, fstat=5, lstat=6, poll=7, lseek=8, mmap=9, mprotect=10, munmap=11)
        | dict(brk=12, rt_sigaction=13, rt_sigprocmask=14, rt_sigreturn=15, pread64=17, writev=20, access=21)
        | dict(sched_yield=24, mremap=25, madvise=28, nanosleep=35, getpid=39, exit=60, uname=63, getcwd=79)
        | dict(readlink=89, gettimeofday=96, getrlimit=97, getrusage=98, times=100, getuid=102, getgid=104)
        | dict(geteuid=107, getegid=108, sigaltstack=131, gettid=186, time=201, futex=202, sched_getaffinity=204)
        | dict(getdents64=217, restart_syscall=219, clock_gettime=228, clock_getres=229, clock_nanosleep=230)
        | dict(exit_group=231, newfstatat=262, readlinkat=267, faccessat=269, getrandom=318, statx=332, rseq=334)
        | dict(faccessat2=439),
    ),
    "aarch64": (
        0xC00000B7,
        56,
        dict(getcwd=17, faccessat=48, close=57, getdents64=61, lseek=62, read=63, write=64, writev=66, pread64=67)
        | dict(ppoll=73, readlinkat=78, newfstatat=79, fstat=80, exit=93, exit_group=94, futex=98, nanosleep=101)
        | dict(clock_gettime=113, clock_getres=114, clock_nanosleep=115, sched_getaffinity=123, sched_yield=124)
        | dict(restart_syscall=128, sigaltstack=132, rt_sigaction=134, rt_sigprocmask=135, rt_sigreturn=139)
        | dict(times=153, uname=160, getrlimit=163, getrusage=165, gettimeofday=169, getpid=172, getuid=174)
        | dict(geteuid=175, getgid=176, getegid=177, gettid=178, brk=214, munmap=215, mremap=216, mmap=222)
        | dict(mprotect=226, madvise=233, getrandom=278, statx=291, rseq=293, faccessat2=439),
    ),
}


class ConfinementError(WeirError):
    """This machine can't confine a process: says what is missing."""


def missing() -> str:
    """What this machine lacks for `seal` to confine fully, in words; empty if nothing."""
    if sys.platform != "linux":
        return f"confinement needs Linux, this is {sys.platform}"
    if platform.machine() not in _CALLS:
        return f"confinement knows the system calls of {' and '.join(_CALLS)}, this is {platform.machine()}"
    if not os.path.exists("/proc/sys/kernel/seccomp"):
        return "the kernel has no seccomp (CONFIG_SECCOMP_FILTER)"
    if _landlock_version() < 1:
        return "the kernel has no Landlock (Linux 5.13 or later with landlock among /sys/kernel/security/lsm)"
    return ""


def library_folders() -> tuple[str, ...]:
    """Folders of Python and of every package that is loaded: what later imports may have to read."""
    named = (sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib"))
    packages = (
        folder
        for name, module in list(sys.modules.items())
        if "." not in name
        for folder in getattr(module, "__path__", ())
    )
    found = {os.path.realpath(folder) for folder in (*named, *packages, "/lib", "/lib64", "/usr/lib") if folder}
    folders: list[str] = []
    for folder in sorted(folder for folder in found if os.path.isdir(folder)):
        if not folders or not folder.startswith(folders[-1] + os.sep):
            folders.append(folder)
    return tuple(folders)


def limit_resources(*, memory_bytes: int, cpu_s: int) -> None:
    """No file of this process grows, no process is made, and memory and processor time end."""
    limits = {
        resource.RLIMIT_AS: memory_bytes,
        resource.RLIMIT_CPU: cpu_s,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_NOFILE: 64,
        resource.RLIMIT_NPROC: 0,
        resource.RLIMIT_CORE: 0,
    }
    for name, wanted in limits.items():
        hard = resource.getrlimit(name)[1]
        value = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(name, (value, value))


def die_with_parent() -> None:
    """SIGKILL for this process when the thread that made it ends. Linux only; elsewhere the deadline does it."""
    if sys.platform == "linux":
        _libc().prctl(_PR_SET_PDEATHSIG, _SIGKILL, 0, 0, 0)


def seal(readable: Iterable[str]) -> None:
    """Confines the calling process for good; file descriptors that are open stay usable.

    Args:
      readable: folders below which files may still be read.

    Raises:
      ConfinementError: the machine lacks something (see `missing`), or refused.
    """
    if why := missing():
        raise ConfinementError(why)
    _check(_libc().prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "PR_SET_NO_NEW_PRIVS")
    _restrict_files(readable)
    _filter_calls()


def _restrict_files(readable: Iterable[str]) -> None:
    version = _landlock_version()
    handled = max(mask for since, mask in _LANDLOCK_FS.items() if since <= version)
    # No rule is added for the network (version 4) or for signals and abstract sockets (6): nothing of them is allowed.
    attributes = struct.pack("QQQ", handled, 3 if version >= 4 else 0, 3 if version >= 6 else 0)
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    ruleset = _call(_LANDLOCK_CREATE, attributes, size, 0)
    for folder in readable:
        descriptor = os.open(folder, os.O_PATH | os.O_CLOEXEC)
        rule = struct.pack("=Qi", _LANDLOCK_READ_FILE | _LANDLOCK_READ_DIR, descriptor)
        _call(_LANDLOCK_ADD_RULE, ruleset, 1, rule, 0)
        os.close(descriptor)
    _call(_LANDLOCK_RESTRICT, ruleset, 0)
    os.close(ruleset)


def _filter_calls() -> None:
    program = filter_program(platform.machine())
    buffer = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(buffer))
    _check(_libc().prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, header, 0, 0), "PR_SET_SECCOMP")


def known_calls(machine: str) -> tuple[int, dict[str, int]]:
    """A machine's audit number, and the number of each call that scoring needs; KeyError for an unknown machine."""
    audit, openat, calls = _CALLS[machine]
    return audit, {**calls, "openat": openat}


def filter_program(machine: str) -> bytes:
    """The seccomp filter for a machine, as BPF (linux/seccomp.h): 8 bytes an instruction."""
    audit, openat, calls = _CALLS[machine]
    numbers = sorted(calls.values())
    code = [
        (_LOAD, 0, 0, 4),
        (_JUMP_EQUAL, 1, 0, audit),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, 0),
        # The x32 calls of x86_64 have numbers of their own from here on.
        (_JUMP_GE, 0, 1, 0x40000000),
        (_RETURN, 0, 0, _KILL),
        (_JUMP_EQUAL, 0, 4, openat),
        (_LOAD, 0, 0, 16 + 8 * 2),
        (_JUMP_SET, 0, 1, _WRITING_FLAGS),
        (_RETURN, 0, 0, _REFUSE),
        (_RETURN, 0, 0, _ALLOW),
        *((_JUMP_EQUAL, len(numbers) - index, 0, number) for index, number in enumerate(numbers)),
        (_RETURN, 0, 0, _REFUSE),
        (_RETURN, 0, 0, _ALLOW),
    ]
    return b"".join(struct.pack("HBBI", *instruction) for instruction in code)


def _landlock_version() -> int:
    try:
        return _call(_LANDLOCK_CREATE, None, 0, _LANDLOCK_VERSION_FLAG)
    except (ConfinementError, OSError):
        return 0


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _call(number: int, *args: int | bytes | None) -> int:
    words = [ctypes.c_long(arg) if isinstance(arg, int) else ctypes.c_char_p(arg) for arg in args]
    return _check(_libc().syscall(ctypes.c_long(number), *words), f"system call {number}")


def _check(result: int, what: str) -> int:
    if result < 0:
        raise ConfinementError(f"{what}: {os.strerror(ctypes.get_errno())}")
    return int(result)
