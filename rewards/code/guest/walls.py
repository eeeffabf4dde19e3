"""What the answer's process takes from itself before it sees the answer: descriptors, memory, processes, system calls.

The walls around all processes of the sandbox are built before they start. These stand inside of them, between the
answer and the tests: the answer's process may not signal, trace, read or limit another one, and makes none.
"""

from __future__ import annotations

import _ctypes
import os
import resource
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

_PR_SET_DUMPABLE = 4
_PR_SET_SECCOMP = 22
_PR_SET_NO_NEW_PRIVS = 38
_SECCOMP_MODE_FILTER = 2
_BYTES_PER_INSTRUCTION = 8
_MAX_DESCRIPTOR = 256


def hide() -> None:
    """No process of the same user may read this one's memory."""
    _prctl(_PR_SET_DUMPABLE, 0)


def limit(limits: Mapping[str, Any]) -> None:
    """Sets resource limits, as soft and as hard ones.

    Args:
      limits: value by name, such as {"AS": bytes}.
    """
    for name, value in limits.items():
        kind = getattr(resource, f"RLIMIT_{name}")
        hard = resource.getrlimit(kind)[1]
        lower = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (lower, lower))


def close_others(kept: Iterable[int]) -> None:
    """Closes all file descriptors but these."""
    keep = set(kept)
    for descriptor in range(_MAX_DESCRIPTOR):
        if descriptor not in keep:
            try:
                os.close(descriptor)
            except OSError:
                continue


def filter_calls(program: bytes) -> None:
    """From here on the calling process has the system calls that a BPF program allows; raises OSError if it can't."""
    code = _bytes(program)
    number = len(program) // _BYTES_PER_INSTRUCTION
    header = _bytes(number.to_bytes(8, sys.byteorder) + _ctypes.addressof(code).to_bytes(8, sys.byteorder))
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    _prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, _ctypes.addressof(header))


def _bytes(content: bytes) -> Any:
    """Bytes at an address."""
    kind: Any = type("_Bytes", (_ctypes.Array,), {"_length_": len(content), "_type_": _Byte})
    return kind.from_buffer_copy(content)


class _Byte(_ctypes._SimpleCData):
    _type_ = "B"


class _Int(_ctypes._SimpleCData):
    _type_ = "i"


class _Long(_ctypes._SimpleCData):
    _type_ = "L"


class _Function(_ctypes.CFuncPtr):
    _flags_ = _ctypes.FUNCFLAG_CDECL
    _restype_ = _Int


def _prctl(*arguments: int) -> None:
    library = _ctypes.dlopen(None, 0)  # type: ignore[arg-type]
    function = _Function(_ctypes.dlsym(library, "prctl"))
    words = [_Long(word) for word in (*arguments, 0, 0, 0, 0)[:5]]
    if function(*words) != 0:
        raise OSError(f"prctl {arguments[0]} was refused")
