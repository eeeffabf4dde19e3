"""Which system calls the processes of a sandbox have, as programs for the kernel's filter (seccomp).

There are two. `outer_filter` goes around all of them and refuses what no program in there needs. `answer_filter` goes
around the answer's process alone and allows some hundred calls: files and memory of its own, time, threads. It can't
make a process, signal, trace or limit another one, open a socket, or change what its namespaces are.
"""

from __future__ import annotations

import errno
import struct
from dataclasses import dataclass

from rewards.sandbox import known_calls

_LOAD, _JUMP_EQUAL, _JUMP_SET, _JUMP_GE, _RETURN = 0x20, 0x15, 0x45, 0x35, 0x06
_ALLOW, _KILL = 0x7FFF0000, 0x80000000
_ERROR = 0x00050000
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16
#: calls of x86_64's x32 interface have numbers from here on
_X32 = 0x40000000
#: calls from here on are newer than this list
_UNKNOWN = 450
_CLONE3 = 435
_CLONE_THREAD = 0x00010000
_CLONE_NAMESPACES = 0x7E020000 | 0x00000080
#: ioctls that ask about a file: is it a terminal, how wide, how much waits; and that it closes when a program starts
_IOCTLS = (0x5401, 0x5413, 0x541B, 0x5450, 0x5451)

_ANSWER_CALLS: dict[str, dict[str, int]] = {
    "x86_64": (
        dict(open=2, pwrite64=18, readv=19, pipe=22, select=23, msync=26, dup=32, dup2=33, pause=34, getitimer=36)
        | dict(alarm=37, setitimer=38, sendfile=40, fsync=74, fdatasync=75, ftruncate=77, getdents=78, chdir=80)
        | dict(fchdir=81, rename=82, mkdir=83, rmdir=84, unlink=87, umask=95, sysinfo=99, getppid=110, getpgrp=111)
        | dict(statfs=137, fstatfs=138, sched_getparam=143, sched_getscheduler=145, set_tid_address=218)
        | dict(mkdirat=258, unlinkat=263, renameat=264, pselect6=270, ppoll=271, set_robust_list=273, utimensat=280)
        | dict(dup3=292, pipe2=293, getcpu=309, renameat2=316, membarrier=324, fcntl=72)
    ),
    "aarch64": (
        dict(dup=23, dup3=24, fcntl=25, mkdirat=34, unlinkat=35, renameat=38, statfs=43, fstatfs=44, ftruncate=46)
        | dict(chdir=49, fchdir=50, pipe2=59, readv=65, pwrite64=68, sendfile=71, pselect6=72, fsync=82, fdatasync=83)
        | dict(utimensat=88, set_tid_address=96, set_robust_list=99, getitimer=102, setitimer=103)
        | dict(sched_getscheduler=120, sched_getparam=121, umask=166, getcpu=168, getppid=173, sysinfo=179, msync=227)
        | dict(renameat2=276, membarrier=283)
    ),
}
_CLONE = {"x86_64": 56, "aarch64": 220}
_IOCTL = {"x86_64": 16, "aarch64": 29}
_PRLIMIT = {"x86_64": 302, "aarch64": 261}

#: of the same number on all machines: pidfds, io_uring, the new mount calls, quotactl_fd, memfd_secret
_REFUSED_NEW = (
    dict(
        pidfd_send_signal=424,
        io_uring_setup=425,
        io_uring_enter=426,
        io_uring_register=427,
        open_tree=428,
        move_mount=429,
    )
    | dict(fsopen=430, fsconfig=431, fsmount=432, fspick=433, pidfd_open=434, pidfd_getfd=438, process_madvise=440)
    | dict(mount_setattr=442, quotactl_fd=443, memfd_secret=447)
)
_REFUSED: dict[str, dict[str, int]] = {
    "x86_64": (
        dict(shmget=29, shmat=30, socket=41, socketpair=53, semget=64, msgget=68, ptrace=101, syslog=103, mknod=133)
        | dict(personality=135, vhangup=153, modify_ldt=154, pivot_root=155, adjtimex=159, chroot=161, acct=163)
        | dict(settimeofday=164, mount=165, umount2=166, swapon=167, swapoff=168, reboot=169, sethostname=170)
        | dict(setdomainname=171, iopl=172, ioperm=173, init_module=175, delete_module=176, quotactl=179)
        | dict(lookup_dcookie=212, clock_settime=227, mbind=237, set_mempolicy=238, mq_open=240, kexec_load=246)
        | dict(add_key=248, request_key=249, keyctl=250, migrate_pages=256, mknodat=259, unshare=272, splice=275)
        | dict(tee=276, vmsplice=278, move_pages=279, perf_event_open=298, fanotify_init=300, name_to_handle_at=303)
        | dict(open_by_handle_at=304, clock_adjtime=305, setns=308, process_vm_readv=310, process_vm_writev=311)
        | dict(kcmp=312, finit_module=313, kexec_file_load=320, bpf=321, userfaultfd=323)
    ),
    "aarch64": (
        dict(mknodat=33, umount2=39, mount=40, pivot_root=41, chroot=51, vhangup=58, quotactl=60, vmsplice=75)
        | dict(splice=76, tee=77, acct=89, personality=92, unshare=97, kexec_load=104, init_module=105)
        | dict(delete_module=106, clock_settime=112, syslog=116, ptrace=117, reboot=142, sethostname=161)
        | dict(setdomainname=162, settimeofday=170, adjtimex=171, mq_open=180, msgget=186, semget=190, shmget=194)
        | dict(shmat=196, socket=198, socketpair=199, add_key=217, request_key=218, keyctl=219, swapon=224)
        | dict(swapoff=225, mbind=235, set_mempolicy=237, migrate_pages=238, move_pages=239, perf_event_open=241)
        | dict(fanotify_init=262, name_to_handle_at=264, open_by_handle_at=265, clock_adjtime=266, setns=268)
        | dict(process_vm_readv=270, process_vm_writev=271, kcmp=272, finit_module=273, bpf=280, userfaultfd=282)
        | dict(kexec_file_load=294)
    ),
}

_Instruction = tuple[int, int, int, int]


@dataclass(frozen=True)
class _Calls:
    audit: int
    answer: dict[str, int]
    refused: dict[str, int]


def knows(machine: str) -> bool:
    """Whether the calls of this machine (as `platform.machine()` names it) are listed."""
    return machine in _ANSWER_CALLS


def outer_filter(machine: str) -> bytes:
    """Refuses what no program in a sandbox needs, and every call that is newer than this list."""
    calls = _calls(machine)
    rules = [rule for number in sorted(calls.refused.values()) for rule in _on(number, _refuse(errno.EPERM))]
    return _program(
        calls.audit,
        [
            *_on(_CLONE3, _refuse(errno.ENOSYS)),
            *_on_argument(_CLONE[machine], 0, _JUMP_SET, _CLONE_NAMESPACES, _refuse(errno.EPERM), _give(_ALLOW)),
            *rules,
            (_JUMP_GE, 0, 1, _UNKNOWN),
            _refuse(errno.ENOSYS),
            _give(_ALLOW),
        ],
    )


def answer_filter(machine: str) -> bytes:
    """Allows what an answer needs, and refuses every other call."""
    calls = _calls(machine)
    rules = [rule for number in sorted(calls.answer.values()) for rule in _on(number, _give(_ALLOW))]
    return _program(
        calls.audit,
        [
            *_on(_CLONE3, _refuse(errno.ENOSYS)),
            *_on_argument(_CLONE[machine], 0, _JUMP_SET, _CLONE_THREAD, _give(_ALLOW), _refuse(errno.EPERM)),
            # Limits of its own process only: the first argument is 0.
            *_on_argument(_PRLIMIT[machine], 0, _JUMP_EQUAL, 0, _give(_ALLOW), _refuse(errno.EPERM)),
            *_on_ioctl(_IOCTL[machine]),
            *rules,
            _refuse(errno.EPERM),
        ],
    )


def _calls(machine: str) -> _Calls:
    audit, known = known_calls(machine)
    return _Calls(audit, {**known, **_ANSWER_CALLS[machine]}, {**_REFUSED[machine], **_REFUSED_NEW})


def _give(word: int) -> _Instruction:
    return (_RETURN, 0, 0, word)


def _refuse(error: int) -> _Instruction:
    return _give(_ERROR | error)


def _on(number: int, then: _Instruction) -> list[_Instruction]:
    return [(_JUMP_EQUAL, 0, 1, number), then]


def _on_argument(
    number: int, index: int, test: int, word: int, then: _Instruction, otherwise: _Instruction
) -> list[_Instruction]:
    """Decides about a call by the low 32 bits of an argument."""
    return [
        (_JUMP_EQUAL, 0, 4, number),
        (_LOAD, 0, 0, _ARGUMENTS + 8 * index),
        (test, 0, 1, word),
        then,
        otherwise,
    ]


def _on_ioctl(number: int) -> list[_Instruction]:
    allowed = [instruction for word in _IOCTLS for instruction in _on(word, _give(_ALLOW))]
    return [
        (_JUMP_EQUAL, 0, len(allowed) + 2, number),
        (_LOAD, 0, 0, _ARGUMENTS + 8),
        *allowed,
        _refuse(errno.EPERM),
    ]


def _program(audit: int, rules: list[_Instruction]) -> bytes:
    code = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_JUMP_EQUAL, 1, 0, audit),
        _give(_KILL),
        (_LOAD, 0, 0, _NUMBER),
        (_JUMP_GE, 0, 1, _X32),
        _give(_KILL),
        *rules,
    ]
    return b"".join(struct.pack("HBBI", *instruction) for instruction in code)
