"""The base of our errors, and the exit status of a command that ends with one."""

from __future__ import annotations

import os

#: Of a command that would fail in the same way again (EX_CONFIG of sysexits.h): it is not started again.
CANNOT_HEAL_STATUS = os.EX_CONFIG


class WeirError(Exception):
    """Something that a person can act on: the message says what was expected, what came, and what to change.

    A command that ends with one prints it as a line, without a traceback.

    Attributes:
      can_heal: whether trying again can help.
    """

    can_heal: bool = True

    @property
    def exit_status(self) -> int:
        return 1 if self.can_heal else CANNOT_HEAL_STATUS
