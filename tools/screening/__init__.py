"""Runs the guards over files of texts, and measures them on data with answers."""

from tools.screening.lines import checked_lines
from tools.screening.measuring import Share, measured

__all__ = ["Share", "checked_lines", "measured"]
