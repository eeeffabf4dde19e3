"""Ctrl-C before a command has begun, such as while it loads its libraries: one line instead of a traceback."""

from __future__ import annotations

import sys
from types import TracebackType


def tell_interrupts_in_a_line() -> None:
    """Has this process print one line for a Ctrl-C that nothing catches; it ends by SIGINT, as it would without."""
    previous = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if issubclass(kind, KeyboardInterrupt):
            print("stopped by Ctrl-C", file=sys.stderr)
        else:
            previous(kind, error, trace)

    sys.excepthook = hook
