"""Command-line entry points; they parse, wire and run."""

import sys

from tools.interrupts import tell_interrupts_in_a_line
from tools.own_packages import own_packages_first

if sys.argv[:1] == ["-m"]:  # Python looks for the module of `python -m tools.X`; the working folder is first
    own_packages_first()
    tell_interrupts_in_a_line()
