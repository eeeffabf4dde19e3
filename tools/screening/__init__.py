"""Runs the guards over files of texts, measures them on data with answers, and trains and serves a small one."""

from tools.screening.lines import checked_lines
from tools.screening.measuring import Share, measured
from tools.screening.modelled import measured_with
from tools.screening.serving import MODEL, guard_application
from tools.screening.training import Trained, trained

__all__ = ["MODEL", "Share", "Trained", "checked_lines", "guard_application", "measured", "measured_with", "trained"]
