"""Scores a file of answers with a run's reward or a verifier, in processes, in order, in constant memory."""

from tools.scoring.judges import Source
from tools.scoring.lines import Line, ScoreError, opened_input, read_lines
from tools.scoring.output import opened_output
from tools.scoring.processes import Processes, scored_lines
from tools.scoring.scored import Scored
from tools.scoring.summary import Summary, print_summary

__all__ = [
    "Line",
    "Processes",
    "ScoreError",
    "Scored",
    "Source",
    "Summary",
    "opened_input",
    "opened_output",
    "print_summary",
    "read_lines",
    "scored_lines",
]
