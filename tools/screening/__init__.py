"""Runs the guards over files of texts, and measures them on data with answers."""

from tools.screening.lines import checked_lines

__all__ = ["checked_lines"]
