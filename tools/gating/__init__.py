"""The evaluation gate: may a candidate be shown to users, by suites asked of it and of the version they have now."""

from tools.gating.checks import Side
from tools.gating.decisions import Bounds, bounds_of, decide, stop_probability
from tools.gating.errors import GateError
from tools.gating.judging import Judge
from tools.gating.page import write_gate_page
from tools.gating.session import Ask, Contest, Gated, hold_gate, run_gate
from tools.gating.settings import CheckSettings, Gate, GateSettings, JudgeSettings, load_gate

__all__ = [
    "Ask",
    "Bounds",
    "CheckSettings",
    "Contest",
    "Gate",
    "GateError",
    "GateSettings",
    "Gated",
    "Judge",
    "JudgeSettings",
    "Side",
    "bounds_of",
    "decide",
    "hold_gate",
    "load_gate",
    "run_gate",
    "stop_probability",
    "write_gate_page",
]
