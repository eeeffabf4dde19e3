"""What an answer may use, and the error of a machine that can't hold it to that."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from learner_jax.runtime import WeirError

#: stacks and libraries take addresses without memory
_ADDRESSES_PER_BYTE = 2
_TESTS_BYTES = 128 << 20


@dataclass(frozen=True)
class Limits:
    """Bounds on one answer.

    Attributes:
      memory_bytes: that it may touch; without a control group, its address space ends at twice as much.
      threads: of one process.
      file_bytes: of one file.
      scratch_bytes: of all files together; they are kept in memory.
      output_bytes: that a program may print; more where a case expects more.
    """

    memory_bytes: int = 512 << 20
    threads: int = 32
    file_bytes: int = 16 << 20
    scratch_bytes: int = 32 << 20
    output_bytes: int = 64 << 10

    @property
    def address_bytes(self) -> int:
        """Address space of one process."""
        return _ADDRESSES_PER_BYTE * self.memory_bytes

    @property
    def total_bytes(self) -> int:
        """Of memory, for all processes of a sandbox and its files."""
        return self.memory_bytes + _TESTS_BYTES + self.scratch_bytes

    def of_answer(self, deadline_s: float) -> dict[str, int]:
        """Resource limits of a process that runs the answer, by name."""
        return {**self.of_tests(deadline_s), "NPROC": self.threads, "FSIZE": self.file_bytes}

    def of_tests(self, deadline_s: float) -> dict[str, int]:
        """Resource limits of the processes around it, by name."""
        return {
            "AS": self.address_bytes,
            "CPU": math.ceil(deadline_s) + 2,
            "FSIZE": self.scratch_bytes,
            "NOFILE": 64,
            "CORE": 0,
            "MEMLOCK": 0,
            "MSGQUEUE": 0,
        }


class SandboxError(WeirError):
    """This machine can't run hostile code safely, or a sandbox didn't start: says what is missing."""

    can_heal = False


@dataclass(frozen=True)
class Report:
    """What became of an answer in its sandbox.

    Attributes:
      outcomes: of each case: "why" ("" if it holds), "kind" (passed, failed, error, timeout, unjudged), "seconds",
        "printed" (by a program of which no output is expected).
      ended: why there is none, if the sandbox ended before its tests did; empty otherwise.
    """

    outcomes: tuple[dict[str, Any], ...]
    ended: str = ""


@dataclass(frozen=True)
class Program:
    """What became of a program.

    Attributes:
      printed: on its standard output; hostile text.
      why: "" if it ended well; else its exception's last line, or how it was ended.
    """

    printed: str
    why: str
