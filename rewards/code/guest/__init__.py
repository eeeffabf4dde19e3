"""The programs inside the sandbox: one that holds the tests, and one that runs the answer and never sees them.

They import the standard library and each other only: they are sent into the sandbox, where Weir is not installed. Each
sandbox starts them anew, so they load few modules; the names of types are there for those who check types only.
"""

from rewards.code.guest.start import main

__all__ = ["main"]
